"""Tiny chat models and tokenizers: turns that end otherwise than texts, special tokens treated in every way."""

from functools import cache
from typing import Any

import torch
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from cagsr.models.from_scratch import new_model, new_tokenizer

TEXT = [
    "name : The Vaults ; area : riverside ; food : french",
    "say hello to the world today < > / | _ [ ] s im start end sep",
]
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


SPECIAL = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<unk>", "<think>"]


def tokenizer(chat_template=None, kind="bytes", begin=False, end=False) -> PreTrainedTokenizerFast:
    """``bytes``: byte-level BPE; ``unigram``: SentencePiece with a space before the text; ``wordpiece``: lower case.

    ``begin``, ``end``: the tokenizer adds ``<s>``, ``</s>`` to every text.
    """
    if kind == "bytes":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=340, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        )
    elif kind == "unigram":
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        trainer = trainers.UnigramTrainer(
            vocab_size=90, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
        )
    else:
        made = Tokenizer(models.WordPiece(unk_token="<unk>"))
        made.normalizer = normalizers.BertNormalizer()
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=SPECIAL, show_progress=False)
    made.train_from_iterator(TEXT, trainer)
    made.add_special_tokens([AddedToken("<|mask|>", lstrip=True, special=True)])
    around = ("<s> " if begin else "") + "$A" + (" </s>" if end else "")
    made.post_processor = processors.TemplateProcessing(
        around, special_tokens=[("<s>", SPECIAL.index("<s>")), ("</s>", SPECIAL.index("</s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        chat_template=chat_template,
    )


def save_assistant(directory: str) -> None:
    """A tiny instruct model with room for prompts of the task restaurants, whose knockouts are more than noise."""
    torch.manual_seed(0)
    tokenizer = chat_tokenizer()
    model = new_model("llama", tokenizer, layers=2, hidden=20, heads=5, context=1024)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(20 if parameter.dim() > 1 else 1)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
