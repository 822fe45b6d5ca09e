"""Tiny models with random weights, one per architecture, and the inputs to run them on."""

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from cagsr.attention import ATTENTION

VOCABULARY = 41
S, T, LAYERS = 11, 7, 3

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 20,
    "intermediate_size": 28,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.4,
}
GROUPED = SHAPE | {"hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 2}
BART = {
    "vocab_size": VOCABULARY,
    "d_model": 20,
    "encoder_layers": 2,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": 5,
    "decoder_attention_heads": 5,
    "encoder_ffn_dim": 28,
    "decoder_ffn_dim": 28,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
    "init_std": 0.4,
    "dropout": 0.0,
}

CAUSAL: dict[str, tuple[str, dict]] = {
    "llama": ("llama", GROUPED),
    "qwen2": ("qwen2", GROUPED),
    "qwen3": ("qwen3", GROUPED | {"head_dim": 10}),
    "mistral": ("mistral", GROUPED | {"sliding_window": 5}),
    "gpt2": (
        "gpt2",
        {
            "vocab_size": VOCABULARY,
            "n_embd": 20,
            "n_layer": LAYERS,
            "n_head": 5,
            "n_positions": 64,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "initializer_range": 0.4,
        },
    ),
    "phi": ("phi", SHAPE | {"hidden_size": 40}),
    "olmo2": ("olmo2", GROUPED),
    "gemma": ("gemma", GROUPED | {"head_dim": 6, "num_key_value_heads": 1}),
    "gpt_neox": ("gpt_neox", SHAPE | {"hidden_size": 40}),
}
ENCODER_DECODER: dict[str, tuple[str, dict]] = {
    "t5": (
        "t5",
        {
            "vocab_size": VOCABULARY,
            "d_model": 20,
            "d_kv": 6,
            "d_ff": 28,
            "num_layers": 2,
            "num_decoder_layers": LAYERS,
            "num_heads": 3,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "decoder_start_token_id": 0,
            "initializer_factor": 1.0,
        },
    ),
    "bart": ("bart", BART),
    "mbart": ("mbart", BART),
    "pegasus": ("pegasus", BART),
}


def build(name: str, dtype: torch.dtype = torch.float32, **changes: object) -> PreTrainedModel:
    """The named architecture with random weights, in eval mode, under our attention."""
    model_type, settings = (CAUSAL | ENCODER_DECODER)[name]
    torch.manual_seed(7)
    config = AutoConfig.for_model(model_type, **(settings | changes))
    loader = AutoModelForSeq2SeqLM if name in ENCODER_DECODER else AutoModelForCausalLM
    return loader.from_config(config, attn_implementation=ATTENTION, dtype=dtype).eval()


def causal_batch(prompts: list[int], responses: list[int]) -> dict[str, Tensor]:
    """Prompts padded on the left and responses on the right, of the given lengths, with true positions."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, VOCABULARY, (len(prompts), S + T), generator=generator)
    mask = torch.zeros_like(ids)
    for n, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        mask[n, S - prompt : S + response] = 1
    return {
        "input_ids": ids * mask,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
    }


def encoder_decoder_batch(prompts: list[int], responses: list[int]) -> dict[str, Tensor]:
    """Prompts and responses padded on the right, of the given lengths."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, VOCABULARY, (len(prompts), S), generator=generator)
    written = torch.randint(3, VOCABULARY, (len(prompts), T), generator=generator)
    mask = (torch.arange(S) < torch.tensor(prompts)[:, None]).long()
    written_mask = (torch.arange(T) < torch.tensor(responses)[:, None]).long()
    return {
        "input_ids": ids * mask,
        "attention_mask": mask,
        "decoder_input_ids": written * written_mask,
        "decoder_attention_mask": written_mask,
    }


def batch(name: str, prompts: list[int], responses: list[int]) -> dict[str, Tensor]:
    return (causal_batch if name in CAUSAL else encoder_decoder_batch)(prompts, responses)


def positions(name: str) -> tuple[slice, slice]:
    """Rows and columns of A for a batch of this architecture."""
    start = S - 1 if name in CAUSAL else 0
    return slice(start, start + T), slice(0, S)
