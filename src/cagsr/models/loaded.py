"""Models that a Python program loaded itself: what they are, their tokenizer, and the policy made of one."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from cagsr.attention.capture import ATTENTION
from cagsr.attention.inspection import name_of
from cagsr.config.schema import Lora
from cagsr.errors import InputError, UnsupportedModelError
from cagsr.io.safetensors_only import reason
from cagsr.models.languages import codes_of, set_languages, unforced
from cagsr.models.load import load_tokenizer, make_policy
from cagsr.models.lora import check_targets, is_adapted, refuse_shared
from cagsr.models.policy import Policy

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = [
    "FORCED",
    "attention_as_before",
    "base_of",
    "check_adapters",
    "check_configs",
    "policy_of",
    "speak",
    "tokenizer_of",
    "uncover_forward",
]

FORCED = "forced_bos_token_id"


def base_of(model: Any) -> PreTrainedModel:
    """The transformers model that a loaded model is, or that a PEFT model adapts.

    Raises InputError for anything else, and UnsupportedModelError for a model that is spread over several devices or
    whose adapter writes tokens into the prompt.
    """
    base = model
    if isinstance(model, nn.Module) and is_adapted(model):
        adapted = cast("PeftModel", model)
        base = adapted.get_base_model()
        if adapted.active_peft_config.is_prompt_learning:
            raise UnsupportedModelError(
                f"model: its adapter ({adapted.active_peft_config.peft_type}) writes virtual tokens before the prompt, "
                "which have no text to read. Use an adapter of another kind, such as LoRA."
            )
    if not isinstance(base, PreTrainedModel):
        raise InputError(
            f"model: expected a name, a transformers PreTrainedModel or a PEFT model, got {type(model).__name__}; "
            "unwrap it first (accelerator.unwrap_model(model), or model._orig_mod of a compiled one)"
        )
    if len(set((getattr(base, "hf_device_map", None) or {}).values())) > 1:
        raise UnsupportedModelError(
            f"model: {name_of(base)} is spread over several devices by its device_map. Load it onto one device."
        )
    return base


def tokenizer_of(
    model: PreTrainedModel, given: PreTrainedTokenizerBase | None, where: Mapping[str, Any]
) -> PreTrainedTokenizerBase:
    if given is None:
        if not model.config.name_or_path:
            raise InputError(
                "processing_class: the model does not say where it was loaded from; give its tokenizer"
            )
        return load_tokenizer(model.config.name_or_path, **where)
    if isinstance(given, PreTrainedTokenizerBase):
        return given
    tokenizer = getattr(given, "tokenizer", None)
    raise InputError(
        f"processing_class: expected a tokenizer, got {type(given).__name__}"
        + (
            "; images are not read, give its .tokenizer"
            if tokenizer is not None
            else "; load one with AutoTokenizer"
        )
    )


def check_adapters(model: Any, base: PreTrainedModel, lora: Lora | None) -> None:
    """Raise InputError for adapters on a loaded model that cannot be trained or saved as they are."""
    if getattr(base, "_hf_peft_config_loaded", False):
        raise InputError(
            "model: transformers put an adapter into it, which it cannot be trained or saved without. Give the name of "
            "the adapter's directory, or load it with peft.PeftModel.from_pretrained."
        )
    if model is base:
        return
    if lora is not None:
        raise InputError(
            "lora: the model is a PEFT model already, with an adapter of its own; leave lora out"
        )
    for config in model.peft_config.values():
        targets = getattr(config, "target_modules", None)
        if isinstance(targets, list | set | tuple):
            check_targets(base, sorted(targets), "model: its adapter's target_modules")
    refuse_shared(base)


def policy_of(model: Any, tokenizer: PreTrainedTokenizerBase, settings: Mapping[str, Any]) -> Policy:
    """The policy of a loaded model, whose attention implementation it changes; an adapter is active in it."""
    base = base_of(model)
    _make_readable(base)
    policy = make_policy(base, tokenizer, **settings)
    policy.model = model
    return policy


def _make_readable(model: PreTrainedModel) -> None:
    try:
        model.set_attn_implementation(ATTENTION)
    except (ImportError, ValueError) as error:
        raise UnsupportedModelError(
            f"model: {name_of(model)} takes no other attention implementation: {reason(error)}. Choose another model."
        ) from error
    if model.config._attn_implementation != ATTENTION:
        raise UnsupportedModelError(
            f"model: {name_of(model)} ({model.config.model_type}) computes attention in classes of its own, which "
            "transformers' attention interface does not reach, so it cannot be read. Choose another model."
        )


def check_configs(model: PreTrainedModel) -> None:
    """Raise InputError for configs of a loaded model that could not be saved after training, or loaded again then."""
    try:
        if model.generation_config is not None:
            model.generation_config.validate()
        with tempfile.TemporaryDirectory() as directory:
            model.config.save_pretrained(directory)
    except ValueError as error:
        why = " ".join(str(error).split())
        raise InputError(f"model: its config could not be saved after training: {why}") from error


def uncover_forward(model: nn.Module) -> None:
    """Let the modules of a model run the ``forward`` of their class.

    TRL's trainers and torch.compile put another one over it, on the instance, which calls the model that it was made
    for: a copy of the model, frozen or a reference, would run that one and see it learn.
    """
    for module in model.modules():
        vars(module).pop("forward", None)


@contextmanager
def attention_as_before(model: PreTrainedModel) -> Iterator[Any]:
    """Context manager that restores a model's attention implementation after the block, part by part.

    What is yielded, called inside the block, lets it keep the new one.
    """
    before = [(config, config._attn_implementation) for config in _configs(model)]
    try:
        yield before.clear
    finally:
        for config, implementation in before:
            config._attn_implementation = implementation


def _configs(model: PreTrainedModel) -> list[PretrainedConfig]:
    """Every config that sets the attention implementation of a part of the model, outer ones first."""
    found: dict[int, PretrainedConfig] = {}

    def visit(config: PretrainedConfig) -> None:
        found.setdefault(id(config), config)
        for name in config.sub_configs:
            if (inner := getattr(config, name, None)) is not None:
                visit(inner)

    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            visit(module.config)
    return list(found.values())


def speak(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    target: str | None = None,
    source: str | None = None,
    ignored: Sequence[str] = (),
) -> None:
    """Set the languages of a model. Raises InputError for one whose tokenizer has several and none is chosen."""
    set_languages(model, tokenizer, target, source)
    problem = unforced(model, tokenizer)
    if problem and codes_of(tokenizer) and FORCED not in ignored:
        raise InputError(
            f"model: {problem}; or, if it was tuned to write without a language, name {FORCED} in "
            "sampling.ignore_generation_config"
        )
