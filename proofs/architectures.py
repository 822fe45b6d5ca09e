"""Attention is real or refused: tiny random models of many architectures against their own eager attention.

Every model is saved, loaded the way a user's is, probed and captured in float32. The reference is the same
weights under transformers' eager attention in float64. A model may be refused, if the reason is given; what it
may not be is read wrongly, and which of the two happens is written down here so that neither changes unseen.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
)
from transformers.utils import logging

from cagsr.attention.capture import Readable, capture
from cagsr.attention.inspection import inspect
from cagsr.attention.naive import eager_weights, naive_attention
from cagsr.errors import UnsupportedModelError
from cagsr.models.load import load_model

TITLE = "attention is real or refused"
PROMISE = 10
SHARDS = False
TOLERANCE = 1e-5

VOCABULARY, LAYERS = 41, 3
LONGEST_PROMPT, LONGEST_RESPONSE = 11, 7

IDS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SHAPE = IDS | {
    "hidden_size": 20,
    "intermediate_size": 28,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
GROUPED = SHAPE | {"hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 2}
WINDOW = {"sliding_window": 5}
EXPERTS = {"num_experts": 3, "num_local_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MIXED_LAYERS = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
T5 = IDS | {
    "d_model": 20,
    "d_kv": 6,
    "d_ff": 28,
    "num_layers": 2,
    "num_decoder_layers": LAYERS,
    "num_heads": 3,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
BART = IDS | {
    "d_model": 20,
    "encoder_layers": 2,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": 5,
    "decoder_attention_heads": 5,
    "encoder_ffn_dim": 28,
    "decoder_ffn_dim": 28,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
    "init_std": 0.2,
}
GPT2 = IDS | {"n_embd": 20, "n_layer": LAYERS, "n_head": 5, "n_positions": 64, "initializer_range": 0.2}


@dataclass(frozen=True)
class Architecture:
    """A model type with tiny settings, and whether its attention is read (True) or refused by name (False)."""

    model_type: str
    settings: dict[str, Any]
    read: bool = True
    loader: Any = field(default=AutoModelForCausalLM)


def _encoder_decoder(model_type: str, settings: dict[str, Any], read: bool = True) -> Architecture:
    return Architecture(model_type, settings, read, AutoModelForSeq2SeqLM)


ARCHITECTURES: dict[str, Architecture] = {
    "t5": _encoder_decoder("t5", T5),
    "mt5": _encoder_decoder("mt5", T5),
    "umt5": _encoder_decoder("umt5", T5),
    "longt5": _encoder_decoder("longt5", T5),
    "switch_transformers": _encoder_decoder("switch_transformers", T5 | {"num_experts": 3}),
    "bart": _encoder_decoder("bart", BART),
    "mbart": _encoder_decoder("mbart", BART),
    "pegasus": _encoder_decoder("pegasus", BART),
    "marian": _encoder_decoder("marian", BART),
    "blenderbot": _encoder_decoder("blenderbot", BART),
    "m2m_100": _encoder_decoder("m2m_100", BART),
    "led": _encoder_decoder(
        "led", BART | {"attention_window": 4, "max_encoder_position_embeddings": 64}, read=False
    ),
    "llama": Architecture("llama", GROUPED),
    "mistral (window)": Architecture("mistral", GROUPED | WINDOW),
    "mixtral": Architecture("mixtral", GROUPED | EXPERTS),
    "qwen2": Architecture("qwen2", GROUPED),
    "qwen2 (window in some layers)": Architecture(
        "qwen2", GROUPED | WINDOW | {"use_sliding_window": True, "max_window_layers": 1}
    ),
    "qwen2_moe": Architecture(
        "qwen2_moe", GROUPED | EXPERTS | {"shared_expert_intermediate_size": 16, "decoder_sparse_step": 1}
    ),
    "qwen3": Architecture("qwen3", GROUPED | {"head_dim": 10}),
    "qwen3_moe": Architecture("qwen3_moe", GROUPED | EXPERTS | {"head_dim": 10}),
    "gemma": Architecture("gemma", GROUPED | {"head_dim": 6, "num_key_value_heads": 1}),
    "gemma2 (softcap)": Architecture("gemma2", GROUPED | {"head_dim": 4}, read=False),
    "gemma3 (windows)": Architecture("gemma3_text", GROUPED | WINDOW | MIXED_LAYERS | {"head_dim": 4}),
    "phi": Architecture("phi", SHAPE | {"hidden_size": 40}),
    "phi3": Architecture("phi3", GROUPED),
    "gpt2": Architecture("gpt2", GPT2),
    "gpt2 (scaled by layer)": Architecture("gpt2", GPT2 | {"scale_attn_by_inverse_layer_idx": True}),
    "gpt_bigcode": Architecture("gpt_bigcode", GPT2),
    "gpt_neo (local)": Architecture(
        "gpt_neo",
        IDS
        | {"hidden_size": 20, "num_layers": 4, "num_heads": 5, "window_size": 5}
        | {"attention_types": [[["global", "local"], 2]], "max_position_embeddings": 64},
        read=False,
    ),
    "gptj": Architecture("gptj", GPT2 | {"rotary_dim": 4}, read=False),
    "gpt_neox": Architecture("gpt_neox", SHAPE | {"hidden_size": 40}),
    "codegen": Architecture("codegen", GPT2 | {"n_embd": 32, "n_head": 4, "rotary_dim": 4}, read=False),
    "opt": Architecture("opt", SHAPE | {"ffn_dim": 28, "word_embed_proj_dim": 20}),
    "bloom (alibi)": Architecture(
        "bloom", IDS | {"hidden_size": 20, "n_layer": LAYERS, "n_head": 5}, read=False
    ),
    "falcon": Architecture("falcon", SHAPE | {"hidden_size": 40}, read=False),
    "falcon (alibi)": Architecture("falcon", SHAPE | {"hidden_size": 40, "alibi": True}, read=False),
    "mpt (alibi)": Architecture(
        "mpt", IDS | {"d_model": 24, "n_heads": 4, "n_layers": LAYERS, "max_seq_len": 64}, read=False
    ),
    "starcoder2": Architecture("starcoder2", GROUPED),
    "stablelm": Architecture("stablelm", SHAPE | {"hidden_size": 40}),
    "olmo": Architecture("olmo", GROUPED),
    "olmo2": Architecture("olmo2", GROUPED),
    "olmo3 (windows)": Architecture("olmo3", GROUPED | WINDOW | MIXED_LAYERS),
    "cohere": Architecture("cohere", GROUPED),
    "cohere2 (windows)": Architecture("cohere2", GROUPED | WINDOW | MIXED_LAYERS),
    "granite": Architecture("granite", GROUPED | {"attention_multiplier": 0.3}),
    "smollm3": Architecture("smollm3", GROUPED | {"no_rope_layers": [1, 0, 1]}),
    "gpt_oss (sinks)": Architecture("gpt_oss", GROUPED | EXPERTS | {"head_dim": 4}, read=False),
    "deepseek_v3 (latent)": Architecture(
        "deepseek_v3",
        SHAPE
        | {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6, "v_head_dim": 5}
        | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2}
        | {"moe_intermediate_size": 16, "first_k_dense_replace": 3},
    ),
    "mamba": Architecture("mamba", SHAPE, read=False),
    "mamba2": Architecture(
        "mamba2",
        IDS | {"hidden_size": 16, "num_heads": 4, "head_dim": 8, "n_groups": 1, "num_hidden_layers": 2},
        read=False,
    ),
    "jamba (hybrid)": Architecture(
        "jamba",
        GROUPED
        | EXPERTS
        | {"mamba_d_state": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "num_hidden_layers": 4},
    ),
    "lfm2 (hybrid)": Architecture("lfm2", GROUPED | {"layer_types": ["conv", "full_attention", "conv"]}),
    "rwkv": Architecture("rwkv", SHAPE | {"attention_hidden_size": 20}, read=False),
    "xlnet": Architecture(
        "xlnet", IDS | {"d_model": 20, "n_layer": LAYERS, "n_head": 5, "d_inner": 28}, read=False
    ),
    "bert": Architecture("bert", SHAPE, False, AutoModelForMaskedLM),
    "bert (language model head)": Architecture("bert", SHAPE, read=False),
    "roberta": Architecture("roberta", SHAPE, False, AutoModelForMaskedLM),
}
COUNT = len(ARCHITECTURES)


def prove(count: int, random: Random, advance: Callable[..., None]) -> list[str]:
    """The architectures, out of ``count`` spread over the families, that are read wrongly or not as written."""
    names = list(ARCHITECTURES)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    failures = []
    for number in range(min(count, COUNT)):
        name = names[number * COUNT // min(count, COUNT)]
        problem = _problem(ARCHITECTURES[name], random)
        failures += [f"{name}: {problem}"] if problem else []
        advance()
    return failures


def _problem(architecture: Architecture, random: Random) -> str:
    """What is wrong with the reading of one architecture; empty when it is exact, or refused as written."""
    try:
        largest = difference(architecture, random)
    except UnsupportedModelError as error:
        named = architecture.model_type.replace("_", "") in str(error).lower().replace("_", "")
        return "" if named and not architecture.read else f"refused: {error}"
    except Exception as error:
        reason = (str(error).strip() or "without a message").splitlines()[0]
        return f"neither read nor refused: {type(error).__name__}: {reason}"
    if not largest <= TOLERANCE:
        return f"silently wrong by {largest:.1e}"
    return "" if architecture.read else "read exactly, and written down as refused"


def difference(architecture: Architecture, random: Random) -> float:
    """The largest absolute difference of captured attention to the float64 reference, at the tokens written.

    The reference runs every sequence alone and without padding. Raises UnsupportedModelError for a model that is
    refused.
    """
    torch.manual_seed(random.randrange(2**31))
    config = AutoConfig.for_model(architecture.model_type, **architecture.settings)
    with tempfile.TemporaryDirectory() as parent:
        directory = str(Path(parent) / architecture.model_type)
        architecture.loader.from_config(config, attn_implementation="eager").save_pretrained(directory)
        model, _ = load_model(directory)
        readable = inspect(model)
        reference = architecture.loader.from_pretrained(
            directory, dtype=torch.float64, attn_implementation="eager"
        ).eval()
    if "num_experts" in architecture.settings:
        reference.set_experts_implementation("eager")  # the grouped kernels know no float64
    return _largest(model, reference, readable, random)


def _largest(model: PreTrainedModel, reference: PreTrainedModel, readable: Readable, random: Random) -> float:
    pairs = [(LONGEST_PROMPT, LONGEST_RESPONSE)]
    pairs += [(random.randint(2, LONGEST_PROMPT), random.randint(1, LONGEST_RESPONSE)) for _ in range(2)]
    prompts, responses = (
        [torch.randint(3, VOCABULARY, (length,)) for length in lengths]
        for lengths in zip(*pairs, strict=True)
    )
    batched = _causal if readable.kind == "causal" else _encoder_decoder_inputs
    inputs, rows = batched(prompts, responses)
    with torch.no_grad(), capture(readable, rows, slice(0, LONGEST_PROMPT)) as reading:
        model(**_accepted(model, inputs), use_cache=False)
    left = LONGEST_PROMPT if readable.kind == "causal" else None
    differences = []
    for n, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        alone, rows = batched([prompt], [response])
        weights = eager_weights(reference, **_accepted(reference, alone))
        expected = naive_attention(weights, rows, slice(0, len(prompt)))
        columns = slice(left - len(prompt), left) if left else slice(0, len(prompt))
        read = reading.attention[n : n + 1, : len(response)]
        differences.append((read[:, :, columns] - expected).abs().max())
        # What is not of this prompt gets nothing.
        differences.append((read.sum(-1) - read[:, :, columns].sum(-1)).abs().max())
    return torch.stack(differences).max().item()  # NaN if one is


def _causal(prompts: list[Tensor], responses: list[Tensor]) -> tuple[dict[str, Tensor], slice]:
    """Prompts padded on the left, responses on the right, with true positions; and the rows of A."""
    ids = torch.cat([_padded(prompts, left=True), _padded(responses)], 1)
    mask = torch.cat([_mask(prompts, left=True), _mask(responses)], 1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    width, written = (max(map(len, texts)) for texts in (prompts, responses))
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    return inputs, slice(width - 1, width - 1 + written)


def _encoder_decoder_inputs(
    prompts: list[Tensor], responses: list[Tensor]
) -> tuple[dict[str, Tensor], slice]:
    """Both padded on the right; the rows of A are all of the decoder's."""
    inputs = {
        "input_ids": _padded(prompts),
        "attention_mask": _mask(prompts),
        "decoder_input_ids": _padded(responses),
        "decoder_attention_mask": _mask(responses),
    }
    return inputs, slice(0, max(map(len, responses)))


def _padded(texts: list[Tensor], left: bool = False) -> Tensor:
    return pad_sequence(texts, batch_first=True, padding_side="left" if left else "right")


def _mask(texts: list[Tensor], left: bool = False) -> Tensor:
    return _padded([torch.ones_like(text) for text in texts], left)


def _accepted(model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the positions where a model counts them itself, or needs none."""
    known = signature(model.forward).parameters
    return {name: value for name, value in inputs.items() if name != "position_ids" or name in known}
