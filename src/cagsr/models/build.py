"""The policy and the vLLM client that a config describes."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cagsr.config import Config
from cagsr.config.schema import Vllm
from cagsr.distributed.process_group import World
from cagsr.errors import InputError
from cagsr.io.quiet_libraries import warn
from cagsr.models.gguf import files_of
from cagsr.models.languages import unforced
from cagsr.models.load import architecture_of
from cagsr.models.load_policy import load_policy
from cagsr.models.lora_start import adapter_to_go_on_from
from cagsr.models.policy import Policy
from cagsr.models.vllm_adapters import Adapter, connect_for_adapters
from cagsr.models.vllm_server import Client
from cagsr.models.vllm_weights import connect_for_weights
from cagsr.tasks.bases import base_name

__all__ = ["build_policy", "check_sampling", "connect_engine", "model_digest", "recompute_activations"]


def build_policy(
    config: Config, loaded: PreTrainedModel | None = None, tokenizer: PreTrainedTokenizerBase | None = None
) -> Policy:
    """Policy of a config: model, tokenizer, LoRA adapter and critic, not yet prepared by Accelerate.

    ``loaded`` is a model that the caller has already, with its ``tokenizer`` (None: that of the model's name).
    """
    model, training = config.model, config.train
    name = base_name(config)
    _check_start(config)
    torch.manual_seed(training.seed)  # what is initialised here: the adapter and the critic
    policy = load_policy(
        loaded or name,
        tokenizer,
        revision=model.revision,
        dtype=model.dtype,
        load_in_4bit=model.load_in_4bit,
        architecture=model.architecture,
        trust_remote_code=model.trust_remote_code,
        layers=config.reward.layers,
        temperature=config.sampling.temperature or 1.0,
        critic=config.algorithm.name == "ppo",
        lora=model.lora,
        ignore_generation_config=config.sampling.ignore_generation_config,
        target_language=model.target_language,
        source_language=model.source_language,
    )
    if training.gradient_checkpointing:
        recompute_activations(policy.model, name)
    return policy


def recompute_activations(model: PreTrainedModel, name: str) -> None:
    """Switch gradient checkpointing on. Raises InputError for a model without it."""
    try:
        model.activation_checkpointing_enable({"use_reentrant": False})
    except ValueError as error:
        raise InputError(
            f"train.gradient_checkpointing: {name} does not allow it; set it to false"
        ) from error


def check_sampling(policy: Policy, console: Console) -> None:
    """Raise InputError for what the model's generation config asks for and is not kept, and say what is overruled."""
    policy.rules.check()
    for told in (policy.rules.overrule(), unforced(policy.model, policy.tokenizer)):
        if told is not None:
            warn(console, told)


def model_digest(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, str]:
    """Digests that identify a loaded model in a run's identity: configs and all weights, and its tokenizer."""
    adapters = {name: adapter.to_dict() for name, adapter in getattr(model, "peft_config", {}).items()}
    generation = model.generation_config.to_dict() if model.generation_config is not None else {}
    about = [
        model.config.to_json_string(),
        *(json.dumps(x, sort_keys=True, default=str) for x in (generation, adapters)),
    ]
    digest = hashlib.sha256("".join(about).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    found = {"model": digest.hexdigest()}
    if tokenizer is not None and tokenizer.is_fast:
        written = tokenizer.backend_tokenizer.to_str() + str(tokenizer.chat_template)  # type: ignore[attr-defined]
        found["tokenizer"] = hashlib.sha256(written.encode()).hexdigest()
    return found


def connect_engine(
    config: Config, accelerator: Accelerator, directory: Path, loaded: PreTrainedModel | None = None
) -> Client | None:
    """Client of the inference server that ``sampling.engine`` names; call it before a model is loaded.

    ``directory`` is that of the run, ``loaded`` a model that the caller has already. None for the policy, and in every
    process but the first. Raises InputError for an encoder-decoder, and what `models.vllm_adapters` and
    `models.vllm_weights` raise where they connect.
    """
    if config.sampling.engine == "policy":
        return None
    model, name = config.model, base_name(config)
    kind = model.architecture
    if kind == "auto":
        kind = architecture_of(name, revision=model.revision, trust_remote_code=model.trust_remote_code)
    if kind != "causal":
        raise InputError(
            f"sampling.engine: vllm writes with causal models only, and {name} is an {kind}; "
            "set sampling.engine to policy"
        )
    rank = _rank(_check_start(config), loaded)
    adapter = None if rank is None else Adapter(files_of(name), rank, directory)
    found: list[Client] = []
    World(accelerator).by_main(lambda: found.append(_connected(config.sampling.vllm, accelerator, adapter)))
    return found[0] if found else None


def _connected(server: Vllm, accelerator: Accelerator, adapter: Adapter | None) -> Client:
    """The client that sends what is trained: an adapter as files, or all weights where the server takes no adapters."""
    device = accelerator.device
    or_weights = device.type == "cuda" and not accelerator.is_fsdp2
    client = adapter and connect_for_adapters(server, adapter, or_weights=or_weights)
    return client or connect_for_weights(server, device)


def _check_start(config: Config) -> Any:
    """The settings of the adapter that is trained: the config's, PEFT's of one to go on from, or None without one.

    Call it before a model is loaded. Raises InputError for one that cannot be gone on from, or not so sampled from.
    """
    lora, sampling = config.model.lora, config.sampling
    if lora is None or lora.path is None:
        return lora
    settings = adapter_to_go_on_from(lora.path, base_name(config), config.model.revision).settings
    if settings.use_dora and (sampling.dtype is not None or sampling.engine == "vllm"):
        key = (
            "engine: vllm takes plain LoRA adapters only"
            if sampling.dtype is None
            else "dtype merges the adapter"
        )
        raise InputError(
            f"model.lora.path: {lora.path} is a DoRA adapter, and sampling.{key}; leave that out"
        )
    return settings


def _rank(settings: Any, loaded: PreTrainedModel | None) -> int | None:
    """The largest rank of the adapter that is trained; None for a model without one.

    Raises InputError for modules that are scaled each by itself: vLLM reads one rank and one alpha for all.
    """
    adapters = [settings] if settings is not None else getattr(loaded, "peft_config", {}).values()
    ranks = []
    for each in adapters:
        for name in ("rank_pattern", "alpha_pattern"):
            if getattr(each, name, None):
                raise InputError(
                    f"sampling.engine: vllm scales all modules of an adapter alike, and this one has a {name}; set "
                    "sampling.engine to policy"
                )
        ranks.append(getattr(each, "r", 0))
    return max(ranks, default=None)
