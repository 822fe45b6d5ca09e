"""From a name to a policy: loading, checking, saving."""

from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from cagsr.attention.capture import ATTENTION
from cagsr.attention.support import inspect
from cagsr.errors import InputError, UnsupportedModelError
from cagsr.policy.causal import CausalPolicy
from cagsr.policy.encoder_decoder import EncoderDecoderPolicy
from cagsr.policy.policy import Policy

__all__ = ["load_model", "load_tokenizer", "make_policy", "save_model", "with_lora"]

POLICIES: dict[str, type[Policy]] = {"causal": CausalPolicy, "encoder-decoder": EncoderDecoderPolicy}


def load_model(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    architecture: str = "auto",
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, dict[str, float]]:
    """A model from a directory or the hub, its attention readable and its dropout off; and the dropout it had.

    Weights are read from safetensors only; code from the hub runs only if ``trust_remote_code`` says so.
    Raises InputError for a name that leads nowhere, UnsupportedModelError for a model that cannot generate.
    """
    where: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(name, **where)
    except (OSError, ValueError) as error:
        raise InputError(f"model.name: cannot load {name!r}: {_first_line(error)}") from error
    dropout = _dropout_off(config)
    kind = architecture if architecture != "auto" else _kind_of(config)
    loader = AutoModelForSeq2SeqLM if kind == "encoder-decoder" else AutoModelForCausalLM
    try:
        model = loader.from_pretrained(
            name,
            config=config,
            dtype=getattr(torch, dtype),
            attn_implementation=ATTENTION,
            use_safetensors=True,
            **where,
        )
    except ValueError as error:
        raise UnsupportedModelError(
            f"{name} ({config.model_type}) cannot generate or cannot be loaded as {kind}; "
            f"needs a causal or encoder-decoder LM: {_first_line(error)}"
        ) from error
    except OSError as error:
        raise InputError(f"model.name: cannot load the weights of {name!r}: {_first_line(error)}") from error
    return model.eval(), dropout


def load_tokenizer(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise InputError(f"model.name: {name!r} has no tokenizer: {_first_line(error)}") from error


def make_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    layers: str | list[int] = "all",
    temperature: float = 1.0,
    critic: bool = False,
    dropout: dict[str, float] | None = None,
) -> Policy:
    """The policy for a model's architecture; probes once that its attention can be read exactly."""
    _check_vocabulary(model, tokenizer)
    readable = inspect(model, layers)
    return POLICIES[readable.kind](
        model, tokenizer, readable, temperature=temperature, critic=critic, dropout=dropout
    )


def with_lora(policy: Policy, *, r: int, alpha: int, target_modules: str | list[str]) -> None:
    """Freeze the policy's weights and train a LoRA adapter instead; the reference is then the adapter switched off.

    Raises InputError when PEFT is not installed or no module has one of the names.
    """
    try:
        import peft
    except ImportError as error:
        raise InputError("model.lora needs PEFT: pip install 'cagsr[lora]'") from error
    kind = "SEQ_2_SEQ_LM" if policy.model.config.is_encoder_decoder else "CAUSAL_LM"
    adapter = peft.LoraConfig(
        r=r, lora_alpha=alpha, target_modules=target_modules, lora_dropout=0.0, task_type=kind
    )
    try:
        policy.model = cast(PreTrainedModel, peft.get_peft_model(policy.model, adapter))
    except ValueError as error:
        raise InputError(f"model.lora.target_modules: {_first_line(error)}") from error


def save_model(policy: Policy, directory: Path) -> None:
    """Weights (safetensors), config with the dropout it came with, tokenizer."""
    config = policy.model.config
    while_training = {key: getattr(config, key) for key in policy.dropout}
    try:
        config.update(policy.dropout)
        policy.model.save_pretrained(directory)
    finally:
        config.update(while_training)
    policy.tokenizer.save_pretrained(directory)


def _dropout_off(config: PretrainedConfig) -> dict[str, float]:
    """Set every dropout rate of a config to 0 before the model is built, and return what they were.

    A network whose dropout is a property of the mode it is in would sample from one distribution and train
    another; gradient checkpointing, which transformers ties to training mode, would bring it back.
    """
    rates = {
        key: value
        for key, value in config.to_dict().items()
        if isinstance(value, float) and ("drop" in key or key.endswith("pdrop"))
    }
    for key in rates:
        setattr(config, key, 0.0)
    return rates


def _kind_of(config: PretrainedConfig) -> str:
    return "encoder-decoder" if config.is_encoder_decoder else "causal"


def _check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = cast(nn.Embedding, model.get_input_embeddings()).num_embeddings
    if len(tokenizer) > rows:
        raise InputError(
            f"the tokenizer knows {len(tokenizer)} tokens and the model embeds {rows}: they do not belong together. "
            "Load both from one place, or resize the model's embeddings."
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
