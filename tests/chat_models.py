"""Tiny chat models: a byte-level tokenizer with a ChatML template, and a Llama whose turns end otherwise than texts."""

from functools import cache
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from cagsr.models.from_scratch import new_model, new_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = [{"role": "user", "content": "city lyon"}]
TEXTS = ["city lyon comes to the party on monday", "hello world, tea and porto for the neighbours"] * 5


def chat_tokenizer(template: str = CHATML) -> PreTrainedTokenizerFast:
    """A tokenizer with ``<pad>`` 0, ``</s>`` 1 (its EOS), ``<|im_start|>`` and ``<|im_end|>``."""
    words = new_tokenizer(TEXTS, "llama", 300)
    words.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    words.chat_template = template
    return words


@cache
def _weights() -> PreTrainedModel:
    torch.manual_seed(0)
    model = new_model("llama", chat_tokenizer(), layers=2, hidden=20, heads=5, context=128)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def chat_model(**generation: Any) -> PreTrainedModel:
    """A Llama with random weights far from uniform, and settings of its generation config."""
    model = type(_weights())(_weights().config)
    model.load_state_dict(_weights().state_dict())
    model.generation_config.update(**generation)
    return model.eval()
