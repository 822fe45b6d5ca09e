"""`load_policy`, the entry point of Python programs: a policy from a model's name or from a loaded model."""

import copy
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from accelerate import PartialState
from pydantic import ValidationError
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from cagsr.attention.capture import ATTENTION
from cagsr.attention.inspection import evaluating, name_of
from cagsr.config.schema import Lora
from cagsr.errors import InputError, UnsupportedModelError
from cagsr.io.adapters import adapter_at, base_at
from cagsr.io.places import expanded
from cagsr.io.provenance import identity
from cagsr.io.safetensors_only import reason
from cagsr.models.dropout import without_randomness
from cagsr.models.languages import codes_of, set_languages, unforced
from cagsr.models.load import load_model, load_tokenizer, make_policy
from cagsr.models.lora import check_targets, is_adapted, proven_base, refuse_shared, with_lora
from cagsr.models.policy import Policy
from cagsr.models.proof import prove_training

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = ["base_of", "frozen_policy", "load_policy", "observing"]

FORCED = "forced_bos_token_id"


def load_policy(
    model: "str | os.PathLike[str] | PreTrainedModel | PeftModel",
    processing_class: PreTrainedTokenizerBase | None = None,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    architecture: str = "auto",
    trust_remote_code: bool = False,
    layers: str | list[int] = "all",
    temperature: float = 1.0,
    critic: bool = False,
    lora: Lora | Mapping[str, Any] | None = None,
    ignore_generation_config: Sequence[str] = (),
    target_language: str | None = None,
    source_language: str | None = None,
) -> Policy:
    """A policy that samples, scores, observes and can be trained, from a model's name or from a loaded model.

    model             directory or hub name; or a transformers model, whatever attention implementation it was loaded
                      with, in either mode; or a PEFT model, whose adapter is then what is trained.
    processing_class  its tokenizer, a fast one; None: the one that lies where the model was loaded from.
    revision, trust_remote_code  of what is loaded by name.
    dtype, architecture          ("float32" or "bfloat16"; "auto", "causal" or "encoder-decoder") of a model that is
                                 loaded by name; a loaded model has its own.
    layers            whose attention is read: "all", "last", "last_half", or numbers counted from 0.
    temperature       of the distribution that responses are sampled from; log-probabilities are of that one.
    critic            add a value head, for PPO.
    lora              train a LoRA adapter instead of the weights: ``r``, ``alpha``, ``target_modules``.
    ignore_generation_config  settings of the model's generation config that are left out of its distribution.
    target_language, source_language   codes of a multilingual model ("fra_Latn"); None: what model and tokenizer say.

    The adapter and the critic begin with random numbers of torch's generator: seed it first.

    Changed on a loaded model, which stays usable: its attention implementation becomes "cagsr" (transformers' ``sdpa``
    where nobody reads), it goes into eval mode, every dropout rate becomes 0 (``policy.dropout`` keeps those of its
    config, and `save_model` writes them back), a ``forward`` that another trainer put over its own is taken off, and
    with ``lora`` PEFT puts its layers into it. `score`, `heatmap` and `AttentionReward` change nothing for good.

    Raises UnsupportedModelError for a model whose attention cannot be read exactly, that computes something else among
    other prompts than alone (`models.proof`), or that stays random while it is trained, and
    InputError for everything else that cannot be used; a model that is refused keeps its attention implementation.
    """
    where: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    settings: dict[str, Any] = {"layers": layers, "temperature": temperature, "critic": critic}
    settings["ignored"] = ignore_generation_config
    adapter = None if lora is None else _lora(lora)
    if target_language is not None and FORCED in ignore_generation_config:
        raise InputError(
            f"model.target_language: it is forced as the first token, and sampling.ignore_generation_config leaves out "
            f"{FORCED}; leave one of them out"
        )
    if isinstance(model, str | os.PathLike):
        name = expanded(model)
        tokenizer = processing_class or load_tokenizer(name, **where)
        adapts_whole = adapter is not None and adapter_at(name, revision) is None
        if adapts_whole:  # the branch of a name may move while it is loaded
            where["revision"] = identity(name, revision).get("revision")
        loaded, dropout = load_model(name, dtype=dtype, architecture=architecture, **where)
        _speak(loaded, tokenizer, target_language, source_language, ignore_generation_config)
        policy = make_policy(loaded, tokenizer, dropout=dropout, **settings)
        prove_training(policy)
        if adapts_whole:
            policy.base = base_at(name, where["revision"])
    else:
        base = base_of(model)
        _check_adapters(model, base, adapter)
        _check_configs(base)
        tokenizer = _tokenizer_of(base, processing_class, where)
        with attention_as_before(base) as keep_new:
            _uncover_forward(model)
            _speak(base, tokenizer, target_language, source_language, ignore_generation_config)
            policy = _policy_of(model, tokenizer, settings)
            policy.dropout |= without_randomness(policy.model)
            prove_training(policy)
            if adapter is not None or model is not base:
                policy.base = proven_base(base, model, revision)
            keep_new()
    if adapter is not None:
        with_lora(policy, r=adapter.r, alpha=adapter.alpha, target_modules=adapter.target_modules)
    return policy.eval()


@contextmanager
def observing(
    model: "str | os.PathLike[str] | PreTrainedModel | PeftModel | Policy",
    processing_class: PreTrainedTokenizerBase | None = None,
    *,
    layers: str | list[int] = "all",
    temperature: float = 1.0,
) -> Iterator[Policy]:
    """Context manager: a policy to observe with, in eval mode; the model is as before when the block ends.

    A model loaded by name goes to Accelerate's device, a loaded one stays where it is. A `Policy`, which was probed
    when it was made, is used as it is, with its own layers and temperature.

    Raises what `load_policy` raises.
    """
    if isinstance(model, Policy):
        if (layers, temperature) != ("all", 1.0) or processing_class not in (None, model.tokenizer):
            raise InputError(
                "model: a Policy has a tokenizer, layers and a temperature of its own; leave these out, or give "
                "load_policy others"
            )
        with evaluating(model.model):
            yield model
    elif isinstance(model, str | os.PathLike):
        policy = frozen_policy(model, processing_class, layers=layers, temperature=temperature)
        yield policy.to(PartialState().device)
    else:
        base = base_of(model)
        tokenizer = _tokenizer_of(base, processing_class, {})
        _speak(base, tokenizer)
        with evaluating(cast(PreTrainedModel, model)), attention_as_before(base):
            yield _policy_of(model, tokenizer, {"layers": layers, "temperature": temperature})


def frozen_policy(
    model: "str | os.PathLike[str] | PreTrainedModel | PeftModel",
    processing_class: PreTrainedTokenizerBase | None = None,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    trust_remote_code: bool = False,
    layers: str | list[int] = "all",
    temperature: float = 1.0,
) -> Policy:
    """A policy that stays as the model is now while the model is trained: a fixed observer.

    Of a loaded model it is a copy. Of a PEFT model it is the base without the adapter, and only what is trained is
    copied: the frozen weights are the model's own, so that they need no memory again and move with it to its device.
    What is loaded by name lies on the CPU.

    Parameters and errors are those of `load_policy`.
    """
    settings: dict[str, Any] = {"layers": layers, "temperature": temperature}
    if isinstance(model, str | os.PathLike):
        where = {"revision": revision, "trust_remote_code": trust_remote_code}
        name = expanded(model)
        tokenizer = processing_class or load_tokenizer(name, **where)
        loaded, _ = load_model(name, dtype=dtype, **where)
        _speak(loaded, tokenizer)
        return make_policy(loaded.requires_grad_(False), tokenizer, **settings).eval()
    base = base_of(model)
    tokenizer = _tokenizer_of(base, processing_class, {})
    _speak(base, tokenizer)
    if model is base:
        frozen = copy.deepcopy(base).requires_grad_(False)
    else:
        shared = {id(weight): weight for weight in model.parameters() if not weight.requires_grad}
        frozen = cast("PeftModel", copy.deepcopy(model, shared))
        # Not `unload`, which keeps the modules that PEFT trains as a whole (``modules_to_save``).
        cast(Any, frozen.base_model).disable_adapter_layers()
    _uncover_forward(frozen)
    return _policy_of(frozen.eval(), tokenizer, settings)


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


def _check_adapters(model: Any, base: PreTrainedModel, lora: Lora | None) -> None:
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


def _check_configs(model: PreTrainedModel) -> None:
    """Raise InputError for configs of a loaded model that could not be saved after training, or loaded again then."""
    try:
        if model.generation_config is not None:
            model.generation_config.validate()
        with tempfile.TemporaryDirectory() as directory:
            model.config.save_pretrained(directory)
    except ValueError as error:
        why = " ".join(str(error).split())
        raise InputError(f"model: its config could not be saved after training: {why}") from error


def _speak(
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


def _policy_of(model: Any, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]) -> Policy:
    """The policy of a loaded model, whose attention implementation it changes; an adapter is active in it."""
    base = base_of(model)
    _make_readable(base)
    policy = make_policy(base, tokenizer, **settings)
    policy.model = model
    return policy


def _uncover_forward(model: nn.Module) -> None:
    """Let the modules of a model run the ``forward`` of their class.

    TRL's trainers and torch.compile put another one over it, on the instance, which calls the model that it was made
    for: a copy of the model, frozen or a reference, would run that one and see it learn.
    """
    for module in model.modules():
        vars(module).pop("forward", None)


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


def _tokenizer_of(
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


def _lora(given: Lora | Mapping[str, Any]) -> Lora:
    try:
        return given if isinstance(given, Lora) else Lora.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("lora", *first["loc"])))
        raise InputError(f"{where}: {first['msg']}; expected r, alpha and target_modules") from error
