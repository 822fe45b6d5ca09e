"""Tiny models of every architecture of transformers: its default config with small numbers, and random weights."""

import re
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from architectures import ARCHITECTURES

VOCABULARY, POSITIONS, WINDOW = 131, 64, 11
LARGEST = 3_000_000
"""Parameters of a model that counts as tiny."""

ENCODERS, DECODERS = ("bert", "roberta", "electra", "distilbert"), ("bert", "roberta", "gpt2", "electra")
COMPOSITES = {f"{encoder}2{decoder}": (encoder, decoder) for encoder in ENCODERS for decoder in DECODERS}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama (dynamic NTK)": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}},
    ),
    "llama (yarn)": ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}}),
    "mistral (window)": ("mistral", {"sliding_window": WINDOW}),
    "phi3 (longrope)": (
        "phi3",
        {
            "original_max_position_embeddings": 32,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "original_max_position_embeddings": 32,
                "short_factor": [1.0] * 4,
                "long_factor": [4.0] * 4,
            },
        },
    ),
}

NAMES = [
    *sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    *(f"{name} (as encoder-decoder)" for name in sorted(MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)),
    *COMPOSITES,
    *VARIANTS,
]

SMALL: tuple[tuple[str, int], ...] = (
    (r"(^|_)vocab(_size)?$|^tgt_vocab_size|^src_vocab_size|^vocab_size", VOCABULARY),
    (
        r"max_(\w+_)?position_embeddings$|^n_positions$|^max_seq_len(gth)?$|^n_ctx$|^seq_length$|^model_max_length$",
        POSITIONS,
    ),
    (r"^sliding_window$|window_size$|^attention_window$|^local_attention$", WINDOW),
    (r"^attention_chunk_size$", 16),
    (r"(num|n)_(hidden_)?layers?$|^(encoder|decoder)_layers$|^num_(encoder|decoder)_layers$", 2),
    (r"(num|n)_(key_value_heads|kv_heads)$|^kv_heads$|^multi_query_group_num$", 2),
    (r"heads?$|^(encoder|decoder)_attention_heads$", 4),
    (r"^qk_head_dim$", 12),
    (r"^(v_|qk_nope_|kv_)?head_dim$|^d_kv$|^attention_head_size$|^kv_channels$", 8),
    (r"^qk_rope_head_dim$|^rotary_dim$", 4),
    (r"lora_rank$", 8),
    (r"^(n_routed_experts|num_(local_)?experts|moe_num_experts)$", 4),
    (r"experts_per_tok(en)?$|^moe_k$|^moe_topk$|^top_k_experts$|^num_selected_experts$", 2),
    (r"^(n_group|topk_group|num_expert_groups?|n_shared_experts|first_k_dense_replace)$", 1),
    (
        r"^(hidden_size|d_model|n_embd|embed_dim|embedding_size|dim|emb_dim|word_embed_proj_dim|hidden_dim|d_embed)$",
        32,
    ),
    (r"intermediate_size|ffn_dim|^d_ff$|^n_inner$|^ffn_hidden_size$|^d_inner$|^ffn_size$|^lru_width$", 48),
    (r"(^|_)(state_size|ssm_size|d_state)$", 4),
)
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
LEFT = {"forced_bos_token_id": None, "forced_eos_token_id": None, "is_decoder": True, "use_cache": True}


def make(name: str) -> PreTrainedModel:
    """A tiny model of the name, with weights far from uniform. Raises whatever its class does for such numbers."""
    if name in COMPOSITES:
        return _stretched(_composite(*COMPOSITES[name]))
    kind, changes = VARIANTS.get(name, (name.removesuffix(" (as encoder-decoder)"), {}))
    loader = AutoModelForSeq2SeqLM if name.endswith("(as encoder-decoder)") else AutoModelForCausalLM
    config = config_of(kind, changes, loader)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in loader.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size:,} parameters are left of it")
    return _stretched(loader.from_config(config))


@torch.no_grad()
def run(model: PreTrainedModel) -> None:
    """A pass on a few tokens, which raises where the small numbers do not belong together."""
    ids = {"input_ids": torch.arange(3, 8)[None]}
    if model.config.is_encoder_decoder:
        ids["decoder_input_ids"] = ids["input_ids"]
    model(**ids, use_cache=False)


def config_of(kind: str, changes: dict[str, Any], loader: Any = AutoModelForCausalLM) -> PretrainedConfig:
    known = ARCHITECTURES.get(kind)
    if known is not None and known.loader is loader and not changes:
        return AutoConfig.for_model(kind, **known.settings | {"vocab_size": VOCABULARY})
    settings = shrunken(AutoConfig.for_model(kind).to_dict())
    return AutoConfig.for_model(kind, **settings | changes)


def shrunken(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings whose names say a size, made small, in inner configs too."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if name in IDS or name in LEFT:
            found[name] = (IDS | LEFT)[name]
        elif name.endswith("_config") and isinstance(value, dict):
            found[name] = shrunken(value) | (
                {"model_type": value["model_type"]} if "model_type" in value else {}
            )
        elif isinstance(value, int) and not isinstance(value, bool):
            small = next((size for pattern, size in SMALL if re.search(pattern, name)), None)
            if small is not None:
                found[name] = min(value, small) if value else value
    return found


def _composite(encoder: str, decoder: str) -> PreTrainedModel:
    halves = [config_of(kind, {"vocab_size": VOCABULARY}) for kind in (encoder, decoder)]
    config = EncoderDecoderConfig.from_encoder_decoder_configs(*halves)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, 2
    model = EncoderDecoderModel(config)
    model.generation_config.decoder_start_token_id = 1
    model.generation_config.eos_token_id = 2
    return model


def _stretched(model: PreTrainedModel) -> PreTrainedModel:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.25)
    model.generation_config.eos_token_id = 2
    if model.config.is_encoder_decoder:
        model.generation_config.decoder_start_token_id = 1
        model.generation_config.forced_bos_token_id = None
    return model.eval()
