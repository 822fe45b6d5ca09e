"""Loading and saving of models and tokenizers, and the policy of a loaded model."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from cagsr.attention.inspection import inspect
from cagsr.attention.reading import ATTENTION
from cagsr.attention.sharing import Sharing
from cagsr.errors import InputError
from cagsr.io.adapters import ADAPTER, ADAPTER_WEIGHTS, BASE, adapter_at, found_base, write_base
from cagsr.io.atomic_write import place_atomically, storing
from cagsr.io.safetensors_only import only_safetensors, reason
from cagsr.models.causal import CausalPolicy
from cagsr.models.dropout import set_rates, without_randomness
from cagsr.models.encoder_decoder import EncoderDecoderPolicy
from cagsr.models.four_bits import four_bits, in_floats, is_quantised, keep_differentiable
from cagsr.models.gguf import files_of
from cagsr.models.lora import is_adapted, merged_copy, merged_onto
from cagsr.models.policy import Policy
from cagsr.models.proof import prove
from cagsr.models.refusals import check_vocabulary, check_weights, not_loaded, of_adapter, refusal

__all__ = [
    "architecture_of",
    "config_of",
    "load_model",
    "load_tokenizer",
    "make_policy",
    "merged",
    "read_generation",
    "save_model",
    "saved_form",
]

GENERATION = "generation_config.json"

POLICIES: dict[str, type[Policy]] = {"causal": CausalPolicy, "encoder-decoder": EncoderDecoderPolicy}


def architecture_of(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> str:
    """``causal`` or ``encoder-decoder``, read from the config of a model (or of an adapter's base) alone.

    Raises InputError for a name that leads nowhere.
    """
    return _kind_of(config_of(name, revision=revision, trust_remote_code=trust_remote_code))


def config_of(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> PretrainedConfig:
    """The config of a model, or of an adapter's base; its weights need not be there.

    Raises InputError for a name that leads nowhere.
    """
    if (adapter := adapter_at(name, revision)) is not None:
        base = found_base(adapter)
        with of_adapter(name):
            return config_of(base.name, revision=base.revision, trust_remote_code=trust_remote_code)
    files = files_of(name)
    try:
        return AutoConfig.from_pretrained(files, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # libraries raise errors of any class for broken files
        raise not_loaded("the model", name, error) from error


def load_model(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    load_in_4bit: bool = False,
    architecture: str = "auto",
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, dict[str, float]]:
    """Load a model from a directory, a GGUF file or the hub, attention readable, dropout off; also returns the dropout
    rates.

    A LoRA adapter gives its base (`io.adapters.found_base`) with the adapter merged in; ``load_in_4bit`` refuses it.
    Weights are read from safetensors only; code from the hub runs only if ``trust_remote_code`` says so.

    Raises InputError for a name that leads nowhere or weights that do not fit, UnsupportedModelError for a model that
    cannot generate.
    """
    if (adapter := adapter_at(name, revision)) is not None:
        where = {"dtype": dtype, "architecture": architecture, "trust_remote_code": trust_remote_code}
        return _load_adapter(name, adapter, load_in_4bit, **where)
    where = {"revision": revision, "trust_remote_code": trust_remote_code}
    files = files_of(name)
    try:
        config = AutoConfig.from_pretrained(files, **where)
        only_safetensors(files, config, revision)
    except InputError as error:
        raise InputError(f"model.name: {error}") from None
    except Exception as error:  # libraries raise errors of any class for broken files
        raise not_loaded("the model", name, error) from error
    few_bits = four_bits(name, config, getattr(torch, dtype)) if load_in_4bit else None
    kind = architecture if architecture != "auto" else _kind_of(config)
    loader: Any = AutoModelForSeq2SeqLM if kind == "encoder-decoder" else AutoModelForCausalLM
    try:
        model, found = loader.from_pretrained(
            files,
            config=config,
            dtype=getattr(torch, dtype),
            attn_implementation=ATTENTION,
            use_safetensors=True,
            # What does not fit is named below; by itself transformers fills it with random numbers.
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            quantization_config=few_bits,
            **where,
        )
    except Exception as error:
        raise refusal(name, config.model_type, kind, error) from error
    check_weights(name, found)
    model.config.name_or_path = name  # of a GGUF file, and not of its copy
    return model.eval(), without_randomness(model)


def _load_adapter(
    name: str, adapter: Path, load_in_4bit: bool, **where: Any
) -> tuple[PreTrainedModel, dict[str, float]]:
    """Load the base that a LoRA adapter's files name, with the adapter merged into its weights."""
    if load_in_4bit:
        raise InputError(
            f"model.load_in_4bit: {name} is a LoRA adapter, and merged into four bits most of it would be rounded "
            "away. Leave one of them out, or name a model that it is merged into (`cagsr export`)."
        )
    if not (adapter / ADAPTER_WEIGHTS).is_file():
        raise InputError(
            f"model.name: the LoRA adapter {name} has no {ADAPTER_WEIGHTS}; weights are never read from pickle files, "
            "which can run code. Save it again with a current PEFT."
        )
    base = found_base(adapter)
    with of_adapter(name):
        model, dropout = load_model(base.name, revision=base.revision, **where)
    read_generation(model, adapter)
    if is_quantised(model):  # what the adapter was trained on
        model = in_floats(model, getattr(torch, where["dtype"]))
    return merged_onto(model, adapter), dropout


def read_generation(model: PreTrainedModel, adapter: Path) -> None:
    """Give a base the generation config that lies beside its adapter. Raises InputError for a broken one."""
    if not (adapter / GENERATION).is_file():
        return
    try:
        model.generation_config = GenerationConfig.from_pretrained(str(adapter))
    except (OSError, ValueError) as error:
        raise InputError(f"{adapter / GENERATION} cannot be read: {reason(error)}; remove it") from error


def merged(name: str, directory: Path) -> str:
    """Name of a model with whole weights in a form that every loader reads: ``name``, the copy of a GGUF file, or for
    a LoRA adapter ``directory``, where it is saved merged.

    Loaders of other classes read whole weights only.

    Raises InputError as `load_model` does, and StorageError.
    """
    if adapter_at(name) is None:
        return files_of(name)
    model, dropout = load_model(name)
    directory.parent.mkdir(parents=True, exist_ok=True)
    save_model(make_policy(model, load_tokenizer(name), dropout=dropout), directory)
    return str(directory)


def load_tokenizer(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load a tokenizer, or that of the base for an adapter without one.

    Raises InputError for a name that leads nowhere or has none.
    """
    adapter = adapter_at(name, revision)
    if adapter is not None and not (adapter / "tokenizer_config.json").is_file():
        base = found_base(adapter)
        with of_adapter(name):
            return load_tokenizer(base.name, revision=base.revision, trust_remote_code=trust_remote_code)
    if adapter is not None:
        name, revision = str(adapter), None
    files = files_of(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            files, revision=revision, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # libraries raise errors of any class for broken files
        raise not_loaded("the tokenizer", name, error) from error
    tokenizer.name_or_path = name
    return tokenizer


def make_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    layers: str | list[int] = "all",
    temperature: float = 1.0,
    critic: bool = False,
    dropout: dict[str, float] | None = None,
    ignored: Sequence[str] = (),
) -> Policy:
    """The policy for a model's architecture, proved: see `attention.inspection` and `models.proof`.

    ``ignored`` are settings of the model's generation config that are left out.

    Raises UnsupportedModelError for a model whose attention cannot be read exactly, or that computes something else
    alone than among others.
    """
    check_vocabulary(model, tokenizer)
    keep_differentiable(model)
    readable = inspect(model, layers)
    policy = POLICIES[readable.kind](
        model,
        tokenizer,
        readable,
        Sharing(),
        temperature=temperature,
        critic=critic,
        dropout=dropout,
        ignored=ignored,
    )
    prove(policy)
    return policy


def saved_form(policy: Policy) -> str:
    """What `save_model` will write of a policy, in words."""
    if not is_adapted(policy.model):
        return "the whole model"
    if policy.base is not None:
        trained = ", which was quantised while it was trained," if is_quantised(policy.model) else ""
        return f"a LoRA adapter; the digest of the base that it needs{trained} is in {BASE}"
    return "the whole model, with the LoRA adapter merged in: its base lies nowhere by itself"


def save_model(policy: Policy, directory: Path, weights: dict[str, Tensor] | None = None) -> None:
    """Save weights (safetensors), config with its original dropout, and tokenizer; each file is written atomically.

    A model with an adapter is saved as the adapter where ``policy.base`` is known, and else whole, the adapter merged
    in: an adapter is of no use without the very weights it was trained on.

    ``weights`` are those to write where the model itself holds shards of them (`distributed.fsdp.whole_weights`).
    Other files of the directory stay. Raises StorageError.
    """
    base = policy.base if is_adapted(policy.model) else None
    model: Any = policy.model
    if base is None and is_adapted(model):
        model = merged_copy(model)
    config = model.config
    staging = directory.with_name(f".{directory.name}.staging")
    with storing(directory):
        shutil.rmtree(staging, ignore_errors=True)
        try:
            set_rates(config, policy.dropout)
            if base is not None:
                # The embeddings are the base's: PEFT asks the hub for its config to learn that.
                model.save_pretrained(staging, save_embedding_layers=False, state_dict=weights)
                write_base(staging, directory, base)
            else:
                with _without_generation(model):
                    model.save_pretrained(staging, state_dict=weights or _untied(model))
        finally:
            set_rates(config, dict.fromkeys(policy.dropout, 0.0))
        # Of an adapter too: languages, ends and forbidden tokens may be other than the base's.
        generation = getattr(model, "get_base_model", lambda: model)().generation_config
        generation.to_json_file(staging / GENERATION, use_diff=True, keys_to_pop=["compile_config"])
        policy.tokenizer.save_pretrained(staging)
    place_atomically(staging, directory)
    # Of a run that went on with another base: beside the new files they would be another model.
    for file in (ADAPTER, ADAPTER_WEIGHTS, BASE) if base is None else ("config.json", "model.safetensors"):
        (directory / file).unlink(missing_ok=True)


@contextmanager
def _without_generation(model: PreTrainedModel) -> Iterator[None]:
    """Context manager in which a model has a plain generation config.

    transformers does not write one whose settings it would ignore, such as a temperature without ``do_sample``, and
    says so when the training is done.
    """
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _untied(model: PreTrainedModel) -> dict[str, Tensor] | None:
    """Weights with a copy of each that is shared though the config ties it to none; None where there is none such.

    transformers writes what is shared once, whatever the config says: a BART that ties nothing would lose its resized
    embeddings.
    """
    weights, copied, seen = model.state_dict(), False, set[int]()
    tied = {name for pair in model.all_tied_weights_keys.items() for name in pair}
    for name, weight in weights.items():
        if weight.data_ptr() in seen and name not in tied:
            weights[name], copied = weight.clone(), True
        seen.add(weight.data_ptr())
    return weights if copied else None


def _kind_of(config: PretrainedConfig) -> str:
    return "encoder-decoder" if config.is_encoder_decoder else "causal"
