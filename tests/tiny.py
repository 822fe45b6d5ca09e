"""Tiny policies with random weights, prompts for them, and a step around them: what tests of the core stand on."""

from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from cagsr.attention.capture import ATTENTION
from cagsr.config.schema import AlgorithmSettings, Limit, Sampling, Term, WatchSettings
from cagsr.distributed.fsdp import prepare
from cagsr.models.from_scratch import new_model
from cagsr.models.load import make_policy
from cagsr.models.policy import Policy
from cagsr.models.reference import Reference
from cagsr.rewards.reward import Reward
from cagsr.rewards.salience import Uniform
from cagsr.tasks import TASKS, tokenizer
from cagsr.training.algorithms import Algorithm
from cagsr.training.collapse_watch import WATCHED, CollapseWatch
from cagsr.training.kl import KLController
from cagsr.training.step import Step
from cagsr.types import Evidence, Prompt, Turn

LENGTHS = (3, 7, 2, 5)
"""Prompt lengths that are padded in a batch."""

SHORT = Sampling(candidates=3, max_new_tokens=7)

FORCED = 77

_POLICIES: dict[str, Policy] = {}

OF_KIND = {"t5": "encoder-decoder", "bart": "encoder-decoder", "bart-forced": "encoder-decoder"}


@cache
def _tokenizer(kind: str) -> PreTrainedTokenizerFast:
    return tokenizer(TASKS["slots"], kind)


def save_models(directory: Path) -> None:
    """``t5`` and ``llama`` as directories a user could name: random weights, two layers, the words of ``slots``."""
    for name in ("t5", "llama"):
        words = _tokenizer(OF_KIND.get(name, "causal"))
        torch.manual_seed(0)
        model = new_model(name, words, layers=2, hidden=16, heads=2, context=64)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(5.0)  # away from uniform, so that responses and attention differ
        model.save_pretrained(directory / name)
        words.save_pretrained(directory / name)


def make_model(
    name: str, *, seed: int = 0, layers: int = 2, hidden: int = 20, heads: int = 5
) -> PreTrainedModel:
    """t5, bart, llama, qwen2 (grouped heads) or mistral (sliding window of 5), weights far from uniform.

    bart-forced is a bart whose generation config forces the first token, as that of many a BART on the hub does.
    """
    words = _tokenizer(OF_KIND.get(name, "causal"))
    if name in ("t5", "bart", "bart-forced", "llama"):
        model = new_model(
            name.removesuffix("-forced"), words, layers=layers, hidden=hidden, heads=heads, context=64
        )
    else:
        shape: dict[str, Any] = {
            "vocab_size": len(words),
            "hidden_size": 24,
            "intermediate_size": 28,
            "num_hidden_layers": layers,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "pad_token_id": words.pad_token_id,
            "bos_token_id": None,
            "eos_token_id": words.eos_token_id,
        }
        shape |= {"sliding_window": 5} if name == "mistral" else {}
        config = AutoConfig.for_model(name, **shape)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION).eval()
    if name == "bart-forced":
        model.generation_config.forced_bos_token_id = FORCED
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                # Large enough that logits and attention are far from uniform and no shift goes unseen.
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def policy(
    name: str,
    *,
    seed: int = 0,
    extra_eos: int = 0,
    shape: dict[str, int] | None = None,
    generation: dict[str, Any] | None = None,
    **settings: Any,
) -> Policy:
    """A policy of the named architecture; ``extra_eos`` more tokens end a response, so that lengths differ.

    ``generation`` is what its generation config says besides. A policy is proved once in a process (`models.proof`) and
    then copied, which takes a twentieth of the time; torch's own random numbers are as they were before.
    """
    words = _tokenizer(OF_KIND.get(name, "causal"))
    key = repr((name, seed, extra_eos, shape, generation, sorted(settings.items())))
    if key not in _POLICIES:
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            model = make_model(name, seed=seed, **(shape or {}))
            if extra_eos:
                model.generation_config.eos_token_id = [words.eos_token_id, *range(20, 20 + extra_eos)]
            for setting, value in (generation or {}).items():
                setattr(model.generation_config, setting, value)
            _POLICIES[key] = make_policy(model, words, **settings)
    return deepcopy(_POLICIES[key], {id(words): words})


def prompts(policy: Policy, lengths: Sequence[int] = LENGTHS, seed: int = 0, first: int = 0) -> list[Prompt]:
    """Prompts of random words with the given numbers of tokens (an encoder-decoder's </s> included)."""
    random, words = Random(seed), policy.tokenizer
    ends = len(words("")["input_ids"])
    made = []
    for position, length in enumerate(lengths):
        ids = [random.randrange(3, len(words)) for _ in range(length - ends)]
        text = " ".join(words.convert_ids_to_tokens(ids))
        encoded = words(text, return_offsets_mapping=True)
        assert len(encoded["input_ids"]) == length
        made.append(
            Prompt(
                text=text,
                ids=tuple(encoded["input_ids"]),
                offsets=tuple(map(tuple, encoded["offset_mapping"])),
                turns=(Turn("user", 0, len(text)),),
                index=first + position,
            )
        )
    return made


def inputs_of(policy: Policy, prompt: Prompt, written: list[int]) -> dict[str, Tensor]:
    """The plain model's inputs: causal models read prompt and response, encoder-decoders the prompt only."""
    if not policy.model.config.is_encoder_decoder:
        return {"input_ids": torch.tensor([[*prompt.ids, *written]])}
    return {
        "input_ids": torch.tensor([prompt.ids]),
        "decoder_input_ids": torch.tensor([[*prefix_of(policy), *written[:-1]]]),
    }


def prefix_of(policy: Policy) -> list[int]:
    """What the decoder is given before the response."""
    config = policy.model.generation_config
    forced = [] if config.forced_bos_token_id is None else [config.forced_bos_token_id]
    return [config.decoder_start_token_id, *forced]


def low_tokens(evidence: Evidence) -> Tensor:
    """[n] in [0, 1]: share of the response's tokens whose id is below 50. Trivial to learn."""
    mask = evidence.rollout.response_mask
    return ((evidence.rollout.response_ids < 50) & mask).sum(-1) / mask.sum(-1)


def low_token_reward() -> Reward:
    return Reward([Term("low_tokens", standardise="none")], extra={"low_tokens": low_tokens})


def make_step(policy: Policy, **settings: Any) -> Step:
    """A step of plain GRPO on `low_token_reward`; any field of Step and the optimizer's rate can be given."""
    learning_rate = settings.pop("learning_rate", 1e-2)
    kind = settings.pop("optimizer", torch.optim.AdamW)
    accelerator = settings.pop("accelerator", None) or Accelerator(cpu=True)
    reference = settings.pop("reference", None) or Reference(policy, shares=not accelerator.is_fsdp2)
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = kind(trained, lr=learning_rate)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.98**step)
    network, prepared = prepare(policy, optimizer, accelerator, reference.copy)
    defaults: dict[str, Any] = {
        "observer": reference,
        "reward": low_token_reward(),
        "salience": Uniform(),
        "algorithm": Algorithm(AlgorithmSettings()),
        "sampling": SHORT,
        "kl_controller": KLController(0.05),
        "groups_per_pass": 2,
        "max_grad_norm": 1e9,
    }
    return Step(
        policy=policy,
        network=network,
        reference=reference,
        optimizer=prepared,
        scheduler=scheduler,
        accelerator=accelerator,
        **defaults | settings,
    )


def sampling(**changes: Any) -> Sampling:
    return SHORT.model_copy(update=changes)


def weights_of(policy: Policy) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in policy.state_dict().items()}


def watch(shuffled_every: int = 10, **limits: Limit) -> CollapseWatch:
    """A collapse watch with these limits and no others."""
    none = dict.fromkeys(WATCHED, Limit())
    return CollapseWatch(WatchSettings.model_construct(**{**none, **limits}, shuffled_every=shuffled_every))


def limit(limit: float, action: str = "warn", patience: int = 3) -> Limit:
    """A limit that may be one that a config refuses, such as one below everything that can be measured."""
    return Limit.model_construct(limit=limit, action=action, patience=patience)
