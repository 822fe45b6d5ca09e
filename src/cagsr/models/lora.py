"""LoRA adapters of models: put on, and merged into the weights."""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from cagsr.attention.inspection import evaluating, name_of, token_ids
from cagsr.errors import InputError, UnsupportedModelError
from cagsr.io.adapters import ADAPTER_WEIGHTS
from cagsr.io.safetensors_only import reason
from cagsr.models.policy import Policy

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = [
    "adapter_on",
    "check_complete",
    "check_targets",
    "fitting",
    "import_peft",
    "is_adapted",
    "is_fresh",
    "merged_copy",
    "merged_onto",
    "plain_name",
    "put_on",
    "refuse_shared",
    "with_lora",
]

WRAPPERS = {"base_layer", "original_module", "token_adapter"}

MERGED = 1e-3
"""Largest difference of logits, as a share of the largest logit, by which merging may round in float32."""

LOST = 0.3
"""Largest share of an adapter that rounding may take: about where it changes weights by their last bit."""


def with_lora(policy: Policy, **settings: Any) -> None:
    """`adapter_on` a policy's model; the reference is then the adapter switched off."""
    policy.model = adapter_on(policy.model, **settings)


def adapter_on(
    model: PreTrainedModel,
    *,
    r: int,
    alpha: int,
    target_modules: str | list[str],
    use_rslora: bool = False,
    use_dora: bool = False,
) -> PreTrainedModel:
    """Put a new LoRA adapter on a model and freeze all else; returns PEFT's model.

    The adapter's own weights are float32, whatever the model's are. rsLoRA is arXiv 2312.03732, DoRA 2402.09353.
    Raises InputError when PEFT is not installed or one of the names is no module's.
    """
    peft = import_peft("model.lora")
    if not isinstance(target_modules, str):
        check_targets(model, target_modules, "model.lora.target_modules")
    kind = "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
    adapter = peft.LoraConfig(
        r=r,
        lora_alpha=alpha,
        target_modules=target_modules,
        use_rslora=use_rslora,
        use_dora=use_dora,
        lora_dropout=0.0,
        task_type=kind,
    )
    return put_on(model, adapter, "model.lora.target_modules")


def put_on(model: PreTrainedModel, settings: Any, key: str) -> PreTrainedModel:
    """Put a new adapter of PEFT's ``settings`` on a model; an error names the config ``key`` that asked for it."""
    try:
        found = import_peft(key).get_peft_model(model, settings, autocast_adapter_dtype=True)
    except ValueError as error:
        raise InputError(f"{key}: {reason(error)}") from error
    refuse_shared(found.get_base_model())
    return cast(PreTrainedModel, found)


def check_targets(model: nn.Module, targets: Iterable[str], key: str) -> None:
    """Raise InputError for a name that matches no module of the model, which PEFT passes over if another one does."""
    names = [name for name, _ in model.named_modules()]
    for target in targets:
        if any(name == target or name.endswith(f".{target}") for name in names):
            continue
        weights = dict.fromkeys(
            name.removesuffix(".weight").removesuffix(".base_layer").rpartition(".")[2]
            for name, weight in model.named_parameters()
            if weight.dim() == 2 and ".lora_" not in name
        )
        close = get_close_matches(target, weights, n=1)
        mend = f"Did you mean {close[0]}?" if close else f"It has {', '.join(weights)}."
        raise InputError(f"{key}: the model has no module {target!r}. {mend}")


def refuse_shared(model: PreTrainedModel) -> None:
    """Raise UnsupportedModelError for an adapter of weights that two modules share: merged, it would change both."""
    places: dict[int, list[str]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        places.setdefault(id(weight), []).append(plain_name(name).removesuffix(".weight"))
    for module in model.modules():
        if hasattr(module, "get_delta_weight"):
            weight = getattr(cast(Any, module).get_base_layer(), "weight", None)  # experts have several
            shared = [] if weight is None else places[id(weight)]
            if len(shared) > 1:
                raise UnsupportedModelError(
                    f"model: {' and '.join(shared)} of {name_of(model)} share their weights, so that an adapter of one "
                    "cannot be merged. Leave them out of target_modules."
                )


def is_adapted(model: nn.Module) -> bool:
    """Whether a model is a PEFT model, with an adapter on it."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def is_fresh(model: nn.Module) -> bool:
    """Whether a model has an adapter that changes nothing yet, so that switched off it is the model before training.

    One factor of each product is then zero: PEFT begins with B, and where it adapts embeddings with A.
    """
    configs = cast(Any, model).peft_config.values() if is_adapted(model) else ()
    for name, weight in model.named_parameters():
        other = ".lora_A." in name or ".lora_embedding_B." in name or ".lora_magnitude_vector." in name
        if ".lora_B." in name or ".lora_embedding_A." in name:
            if weight.any():
                return False
        elif ".modules_to_save." in name or (weight.requires_grad and not other):
            return False
    return bool(configs) and all(config.peft_type == "LORA" for config in configs)


def merged_onto(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """``model`` with the adapter in a directory merged into its weights, all of them trainable.

    Where the adapter brings embeddings of other tokens, the model is resized to them. Raises InputError for an adapter
    that does not fit, UnsupportedModelError for one that cannot be merged.
    """
    peft = import_peft(f"{adapter} is a LoRA adapter, which")
    with fitting(model, adapter):
        config = peft.PeftConfig.from_pretrained(str(adapter))
        with safe_open(adapter / ADAPTER_WEIGHTS, "pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 # no mapping
        if config.is_prompt_learning:
            raise UnsupportedModelError(
                f"model.name: the adapter {adapter} ({config.peft_type}) writes virtual tokens before the prompt, "
                "which have no text to read. Use an adapter of another kind, such as LoRA."
            )
        _resize(model, shapes)
        config.inference_mode = True
        # Not with low_cpu_mem_usage, which unties embeddings that the adapter brings along.
        with torch.random.fork_rng([]):
            adapted = peft.PeftModel(model, config)
        check_complete(adapted.load_adapter(str(adapter), "default"), adapter)
    # PEFT has frozen the base.
    return _merged(adapted).requires_grad_(True)


@contextmanager
def fitting(model: PreTrainedModel, adapter: Path, key: str = "model.name") -> Iterator[None]:
    """Context manager in which an adapter's files are put on their base: what does not fit is an InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # libraries raise errors of any class for broken files
        lines = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
        where = "base_model_name_or_path in its adapter_config.json" if key == "model.name" else "model.name"
        raise InputError(
            f"{key}: the LoRA adapter {adapter} does not fit its base {name_of(model)}: "
            f"{(lines[0] if lines else reason(error)).rstrip('.')}. Name the model it was trained on as {where}."
        ) from error


def _merged(adapted: "PeftModel") -> PreTrainedModel:
    """Merge the active adapters into the base, in place, and check that the model says what it said before.

    Raises UnsupportedModelError for an adapter that cannot be merged or changes the model when it is, InputError where
    the base's weights have too few bits for what it adds.
    """
    base = cast(PreTrainedModel, adapted.get_base_model())
    if not hasattr(adapted, "merge_and_unload"):
        kind = adapted.active_peft_config.peft_type
        raise UnsupportedModelError(f"model: an adapter of kind {kind} cannot be merged. Use LoRA.")
    refuse_shared(base)
    lost = _rounded_away(base)
    if lost > LOST:
        raise InputError(
            f"model: in {base.dtype} rounding takes {lost:.0%} of an adapter away when it is merged into "
            f"{name_of(base)}. Set model.dtype to float32."
        )
    with torch.no_grad(), evaluating(base):
        before = _logits(base)
        merged = cast(PreTrainedModel, adapted.merge_and_unload())
        after = _logits(merged)
    allowed = MERGED if before.dtype == torch.float32 else 50 * MERGED
    if not (after - before).abs().max() <= allowed * before.abs().max():
        raise UnsupportedModelError(
            f"model: {name_of(base)} says something else when its adapter is merged into its weights. Use an adapter "
            "of other modules."
        )
    return merged


@torch.no_grad()
def _rounded_away(base: nn.Module) -> float:
    """The share, in norm, of what adapters add to weights that the weights' own precision cannot hold; 0 in float32."""
    added, lost = 0.0, 0.0
    for module in base.modules():
        if hasattr(module, "get_delta_weight"):
            layer: Any = module
            weight = layer.get_base_layer().weight
            for adapter in layer.active_adapters:
                delta = layer.get_delta_weight(adapter).float()
                whole = weight.float() + delta
                added += float(delta.square().sum())
                lost += float((whole.to(weight.dtype).float() - whole).square().sum())
    return (lost / added) ** 0.5 if added else 0.0


def merged_copy(adapted: Any) -> PreTrainedModel:
    """A copy on the CPU with the adapter merged into its weights, in float32: fewer bits would round it away."""
    known: dict[int, Any] = {}
    for weight in (*adapted.parameters(), *adapted.buffers()):
        dtype = torch.float32 if weight.is_floating_point() else weight.dtype
        value = weight.detach().to("cpu", dtype, copy=True)
        known[id(weight)] = nn.Parameter(value) if isinstance(weight, nn.Parameter) else value
    return _merged(copy.deepcopy(adapted, known))


def plain_name(key: str) -> str:
    """The name of a weight without the parts that PEFT puts in where it wraps a module."""
    return ".".join(part for part in key.split(".") if part not in WRAPPERS)


def _resize(model: PreTrainedModel, shapes: dict[str, list[int]]) -> None:
    """Resize the embeddings to those that an adapter brings along; ``shapes`` are its weights'.

    Raises InputError where it brings some of them only: the others would be random.
    """
    parts = {"input": model.get_input_embeddings(), "output": model.get_output_embeddings()}
    width = cast(Tensor, cast(nn.Embedding, parts["input"]).weight).shape[1]
    rows: dict[str, int] = {}
    for part, module in parts.items():
        for name, other in model.named_modules():
            for key, shape in shapes.items():
                inside = key.startswith(f"base_model.model.{name}.") and ".lora_" not in key
                if other is module and inside and key.endswith(".weight") and shape[1:] == [width]:
                    rows[part] = shape[0]
    known = {part: cast(Any, module).weight.shape[0] for part, module in parts.items() if module is not None}
    if all(rows[part] == known[part] for part in rows):
        return
    tied = len({id(cast(Any, module).weight) for module in parts.values() if module is not None}) == 1
    if len({*rows.values()}) > 1 or not (tied or {*rows} == {*known}):
        raise InputError(
            f"model.name: the adapter brings embeddings of {rows} rows, and its base {name_of(model)} has {known}. "
            "Save it again with both (save_embedding_layers=True)."
        )
    model.resize_token_embeddings(max(rows.values()), mean_resizing=False)


def check_complete(found: Any, adapter: Path, key: str = "model.name") -> None:
    """``found`` is what PEFT reports: an adapter that is put on in parts says something else than the whole one."""
    duplicates = (".original_module.", ".modules_to_save.", ".token_adapter.")
    unexpected = [key for key in found.unexpected_keys if not any(part in key for part in duplicates)]
    for keys, problem in ((found.missing_keys, "lacks"), (unexpected, "has, but not its base, a place for")):
        if keys:
            raise InputError(
                f"{key}: the LoRA adapter {adapter} {problem} {len(keys)} weights (first: {sorted(keys)[0]}). "
                "Its files and its base do not belong together."
            )


def _logits(model: PreTrainedModel) -> Tensor:
    ids = token_ids(model, 12)[None]
    inputs = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    return model(input_ids=ids, **inputs, use_cache=False).logits


def import_peft(needed_by: str) -> Any:
    """The package PEFT. Raises InputError where it is not installed."""
    try:
        import peft
    except ImportError as error:
        raise InputError(f"{needed_by} needs PEFT: pip install peft") from error
    return peft
