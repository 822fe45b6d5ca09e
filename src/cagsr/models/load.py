"""Loading and saving of models and tokenizers, and the policy of a loaded model."""

import os
import shutil
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from cagsr.attention.inspection import inspect
from cagsr.attention.reading import ATTENTION
from cagsr.attention.sharing import inspect_sharing
from cagsr.errors import InputError, UnsupportedModelError
from cagsr.io.atomic_write import place_atomically, storing
from cagsr.io.safetensors_only import only_safetensors, reason
from cagsr.models.causal import CausalPolicy
from cagsr.models.encoder_decoder import EncoderDecoderPolicy
from cagsr.models.policy import Policy

__all__ = [
    "architecture_of",
    "load_model",
    "load_tokenizer",
    "make_policy",
    "merged",
    "save_model",
    "with_lora",
]

ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

POLICIES: dict[str, type[Policy]] = {"causal": CausalPolicy, "encoder-decoder": EncoderDecoderPolicy}


def architecture_of(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> str:
    """``causal`` or ``encoder-decoder``, read from the config of a model (or of an adapter's base) alone.

    Raises InputError for a name that leads nowhere.
    """
    try:
        if os.path.isfile(os.path.join(name, ADAPTER)):
            adapter = _peft(f"{name} is a LoRA adapter, which").PeftConfig.from_pretrained(name)
            name, revision = str(adapter.base_model_name_or_path), adapter.revision
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except InputError:
        raise
    except Exception as error:  # libraries raise errors of any class for broken files
        raise _not_loaded("the model", name, error) from error
    return _kind_of(config)


def load_model(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    architecture: str = "auto",
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, dict[str, float]]:
    """Load a model from a directory or the hub, attention readable, dropout off; also returns the dropout rates.

    A directory with a LoRA adapter gives its base with the adapter merged in. Weights are read from safetensors
    only; code from the hub runs only if ``trust_remote_code`` says so. Raises InputError for a name that leads
    nowhere or weights that do not fit, UnsupportedModelError for a model that cannot generate.
    """
    # Not Path.is_file: it raises where a name is too long for a file.
    if os.path.isfile(os.path.join(name, ADAPTER)):
        where = {"dtype": dtype, "architecture": architecture, "trust_remote_code": trust_remote_code}
        return _load_adapter(name, **where)
    where = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(name, **where)
        only_safetensors(name, config, revision)
    except InputError as error:
        raise InputError(f"model.name: {error}") from None
    except Exception as error:  # libraries raise errors of any class for broken files
        raise _not_loaded("the model", name, error) from error
    dropout = _dropout_off(config)
    kind = architecture if architecture != "auto" else _kind_of(config)
    loader: Any = AutoModelForSeq2SeqLM if kind == "encoder-decoder" else AutoModelForCausalLM
    try:
        model, found = loader.from_pretrained(
            name,
            config=config,
            dtype=getattr(torch, dtype),
            attn_implementation=ATTENTION,
            use_safetensors=True,
            # What does not fit is named below; by itself transformers fills it with random numbers.
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **where,
        )
    except Exception as error:
        raise _refusal(name, config.model_type, kind, error) from error
    _check_weights(name, found)
    return model.eval(), dropout


def _refusal(name: str, model_type: str, kind: str, error: Exception) -> InputError:
    """The InputError for a model that did not load; libraries raise errors of any class for broken files."""
    if isinstance(error, KeyError) and error.args == (ATTENTION,):
        return UnsupportedModelError(
            f"{name} ({model_type}) computes attention in classes of its own, which transformers' attention "
            "interface does not reach, so it cannot be read. Choose another model; `cagsr doctor` tells."
        )
    if isinstance(error, ValueError):
        why = "." if "Unrecognized configuration class" in str(error) else f": {reason(error)}"
        return UnsupportedModelError(
            f"{name} ({model_type}) cannot generate, or not as {kind}; needs a causal or encoder-decoder LM{why}"
        )
    return _not_loaded("the weights", name, error)


def _load_adapter(name: str, **where: Any) -> tuple[PreTrainedModel, dict[str, float]]:
    """Load the base that a LoRA adapter's config names, with the adapter merged into its weights."""
    peft = _peft(f"{name} is a LoRA adapter, which")
    if not (Path(name) / ADAPTER_WEIGHTS).is_file():
        raise InputError(
            f"model.name: the LoRA adapter {name} has no {ADAPTER_WEIGHTS}; weights are never read from pickle files, "
            "which can run code. Save it again with a current PEFT."
        )
    try:
        adapter = peft.PeftConfig.from_pretrained(name)
        base = str(adapter.base_model_name_or_path)
        model, dropout = load_model(base, revision=adapter.revision, **where)
    except Exception as error:  # libraries raise errors of any class for broken files
        raise InputError(
            f"model.name: {name} is a LoRA adapter whose base does not load: {reason(error)}"
        ) from error
    try:
        adapted = peft.PeftModel.from_pretrained(model, name, low_cpu_mem_usage=True)
        # PEFT has frozen the base.
        merged = adapted.merge_and_unload().requires_grad_(True)
    except Exception as error:
        raise InputError(
            f"model.name: the LoRA adapter {name} does not fit its base {base}: {reason(error)}. "
            "Set base_model_name_or_path in its adapter_config.json to the model it was trained on."
        ) from error
    return cast(PreTrainedModel, merged), dropout


def merged(name: str, directory: Path) -> str:
    """Name of a model with whole weights: ``name``, or for a LoRA adapter ``directory``, where it is saved merged.

    Loaders of other classes read whole weights only.

    Raises InputError as `load_model` does, and StorageError.
    """
    if not os.path.isfile(os.path.join(name, ADAPTER)):
        return name
    model, dropout = load_model(name)
    directory.parent.mkdir(parents=True, exist_ok=True)
    save_model(make_policy(model, load_tokenizer(name), dropout=dropout), directory)
    return str(directory)


def load_tokenizer(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load a tokenizer. Raises InputError for a name that leads nowhere or has none."""
    try:
        return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # libraries raise errors of any class for broken files
        raise _not_loaded("the tokenizer", name, error) from error


def make_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    layers: str | list[int] = "all",
    temperature: float = 1.0,
    critic: bool = False,
    dropout: dict[str, float] | None = None,
) -> Policy:
    """The policy for a model's architecture; a probe checks that its attention can be read exactly."""
    _check_vocabulary(model, tokenizer)
    readable, sharing = inspect(model, layers), inspect_sharing(model)
    return POLICIES[readable.kind](
        model, tokenizer, readable, sharing, temperature=temperature, critic=critic, dropout=dropout
    )


def with_lora(policy: Policy, *, r: int, alpha: int, target_modules: str | list[str]) -> None:
    """Freeze the policy's weights and train a LoRA adapter instead; the reference is then the adapter switched off.

    The adapter's own weights are float32, whatever the policy's are.
    Raises InputError when PEFT is not installed or no module has one of the names.
    """
    peft = _peft("model.lora")
    kind = "SEQ_2_SEQ_LM" if policy.model.config.is_encoder_decoder else "CAUSAL_LM"
    adapter = peft.LoraConfig(
        r=r, lora_alpha=alpha, target_modules=target_modules, lora_dropout=0.0, task_type=kind
    )
    try:
        policy.model = cast(
            PreTrainedModel, peft.get_peft_model(policy.model, adapter, autocast_adapter_dtype=True)
        )
    except ValueError as error:
        raise InputError(f"model.lora.target_modules: {reason(error)}") from error


def save_model(policy: Policy, directory: Path, weights: dict[str, Tensor] | None = None) -> None:
    """Save weights (safetensors), config with its original dropout, and tokenizer; each file is written atomically.

    ``weights`` are those to write where the model itself holds shards of them (`distributed.fsdp.whole_weights`).
    Other files of the directory stay. Raises StorageError.
    """
    config = policy.model.config
    while_training = {key: getattr(config, key) for key in policy.dropout}
    staging = directory.with_name(f".{directory.name}.staging")
    with storing(directory):
        shutil.rmtree(staging, ignore_errors=True)
        try:
            config.update(policy.dropout)
            policy.model.save_pretrained(staging, state_dict=weights)
        finally:
            config.update(while_training)
        policy.tokenizer.save_pretrained(staging)
    place_atomically(staging, directory)


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


def _check_weights(name: str, found: dict[str, Any]) -> None:
    for keys, problem in (
        (sorted(found["missing_keys"]), "are not in the checkpoint"),
        (sorted(key[0] for key in found["mismatched_keys"]), "have other shapes in the checkpoint"),
    ):
        if keys:
            raise InputError(
                f"model.name: {name}: {len(keys)} weights that config.json asks for {problem} (first: {keys[0]}). "
                "Load a language model whose config and weights belong together."
            )


def _not_loaded(part: str, name: str, error: Exception) -> InputError:
    if os.path.isdir(name):
        if part == "the tokenizer" and not any(file.startswith("tokenizer") for file in os.listdir(name)):
            return InputError(
                f"model.name: {name!r} has no tokenizer (tokenizer.json); save that of the model it was made from there"
            )
        return InputError(f"model.name: {part} in {name!r} cannot be loaded: {reason(error)}")
    return InputError(f"model.name: no directory {name!r} here, and not loaded from the hub: {reason(error)}")


def _peft(needed_by: str) -> Any:
    try:
        import peft
    except ImportError as error:
        raise InputError(f"{needed_by} needs PEFT: pip install peft") from error
    return peft
