"""Tiny random models whose ways of computing differ from the usual, and the plain model that they are held to."""

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    PreTrainedModel,
)

import tiny
from cagsr.models.policy import Policy
from cagsr.types import Rollout

SHAPE: dict[str, Any] = {
    "hidden_size": 20,
    "intermediate_size": 28,
    "num_hidden_layers": 2,
    "num_attention_heads": 5,
    "max_position_embeddings": 66,
}
GROUPED = SHAPE | {"hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 2}
BART: dict[str, Any] = {
    "d_model": 20,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 5,
    "decoder_attention_heads": 5,
    "encoder_ffn_dim": 28,
    "decoder_ffn_dim": 28,
    "max_position_embeddings": 64,
    "forced_eos_token_id": None,
}
GPT2: dict[str, Any] = {"n_embd": 20, "n_layer": 2, "n_head": 5, "n_positions": 64}


def ids_of(kind: str) -> dict[str, int]:
    words = tiny._tokenizer(kind)
    return {
        "vocab_size": len(words),
        "pad_token_id": words.pad_token_id,
        "bos_token_id": words.eos_token_id,
        "eos_token_id": words.eos_token_id,
    }


def stretched(model: PreTrainedModel, scale: float = 0.3) -> PreTrainedModel:
    """Weights far from uniform, so that no shift of a position goes unseen."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.eval()


def causal(kind: str, **settings: Any) -> PreTrainedModel:
    config = AutoConfig.for_model(kind, **ids_of("causal") | settings)
    return stretched(AutoModelForCausalLM.from_config(config))


def encoder_decoder(kind: str, **settings: Any) -> PreTrainedModel:
    ids = ids_of("encoder-decoder")
    ids["decoder_start_token_id"] = ids["pad_token_id"]
    return stretched(AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(kind, **ids | settings)))


def composite(
    encoder: str, decoder: str, encoder_positions: int = 66, start: int | None = None, **rates: float
) -> PreTrainedModel:
    """An encoder-decoder of two models, ``encoder`` and ``decoder`` of the types bert, roberta or gpt2."""
    ids = ids_of("encoder-decoder")
    halves = [
        AutoConfig.for_model(kind, **ids | (GPT2 if kind == "gpt2" else SHAPE) | positions | rates)
        for kind, positions in ((encoder, {"max_position_embeddings": encoder_positions}), (decoder, {}))
    ]
    config = EncoderDecoderConfig.from_encoder_decoder_configs(*halves)
    config.pad_token_id, config.eos_token_id = ids["pad_token_id"], ids["eos_token_id"]
    config.decoder_start_token_id = ids["eos_token_id"] if start is None else start
    model = EncoderDecoderModel(config)
    model.generation_config.decoder_start_token_id = config.decoder_start_token_id
    model.generation_config.eos_token_id = ids["eos_token_id"]
    return stretched(model)


def words_of(model: PreTrainedModel) -> Any:
    return tiny._tokenizer("encoder-decoder" if model.config.is_encoder_decoder else "causal")


@torch.no_grad()
def by_hand(plain: PreTrainedModel, policy: Policy, rollout: Rollout) -> list[Tensor]:
    """[T V] float64 log-probabilities of each response: an unpadded row of its own by the model's eager attention."""
    plain = copy.deepcopy(plain).double().eval()
    plain.set_attn_implementation("eager")
    if hasattr(plain, "set_experts_implementation"):
        plain.set_experts_implementation("eager")
    found = []
    for row, mask in enumerate(rollout.response_mask):
        prompt, written = rollout.prompts[row // rollout.group_size], rollout.response_ids[row][mask].tolist()
        logits = plain(**tiny.inputs_of(policy, prompt, written), use_cache=False).logits[0]
        logits = (
            logits[-len(written) :] if plain.config.is_encoder_decoder else logits[-len(written) - 1 : -1]
        )
        found.append(logits.log_softmax(-1))
    return found


def taken(logprobs: list[Tensor], rollout: Rollout) -> Tensor:
    """[N T] of the tokens that were written, 0 at padding."""
    found = torch.zeros(rollout.response_ids.shape, dtype=torch.float64)
    for row, each in enumerate(logprobs):
        tokens = rollout.response_ids[row, : len(each), None]
        found[row, : len(each)] = each.gather(-1, tokens)[:, 0]
    return found


def asked(policy: Policy, prompts: tuple[int, ...], responses: tuple[int, ...]) -> Rollout:
    """Ragged given responses of words to prompts of random words, of these lengths."""
    generator = torch.Generator().manual_seed(11)
    rows = [
        torch.randint(3, len(policy.tokenizer), (length,), generator=generator).tolist()
        for length in responses
    ]
    return policy.given_ids(tiny.prompts(policy, prompts), rows)
