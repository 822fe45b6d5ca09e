"""Going on from a LoRA adapter: its files checked before a model loads, its weights put on to be trained further."""

import json
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from cagsr.errors import InputError
from cagsr.io.adapters import ADAPTER, ADAPTER_WEIGHTS, Base, adapter_at, base_at, other_base
from cagsr.io.provenance import identity
from cagsr.io.safetensors_only import reason
from cagsr.models.lora import check_complete, fitting, import_peft, put_on

__all__ = ["Start", "adapter_to_go_on_from", "base_to_go_on_with", "going_on_from", "names_layers"]

KEY = "model.lora.path"

KEPT = {
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "use_dora",
    "lora_dropout",
    "fan_in_fan_out",
}
KEPT |= {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights"}
KEPT |= {"peft_type", "task_type", "auto_mapping", "inference_mode", "peft_version"}
KEPT |= {"base_model_name_or_path", "revision"}
"""Settings of PEFT's LoraConfig that may be other than its defaults."""

FRESH = (True, False, "gaussian")
"""Values of ``init_lora_weights`` by which PEFT leaves the base as it is: PiSSA and its kin take from its weights."""


@dataclass(frozen=True)
class Start:
    """An adapter to go on from: where its files are, PEFT's settings of it, and the base that both stand on."""

    directory: Path
    settings: Any
    base: Base


def adapter_to_go_on_from(path: str, name: str, revision: str | None = None) -> Start:
    """The adapter that ``model.lora.path`` names, for the model ``name``; only its files are read.

    Raises InputError for what is no plain LoRA adapter, or one of another base, and where PEFT is not installed.
    """
    directory = adapter_at(path)
    if directory is None:
        inside = sorted(file.parent.name for file in Path(path).glob(f"*/{ADAPTER}"))
        mend = (
            f"name one of those in it: {', '.join(inside)}"
            if inside
            else "name a directory that PEFT saved one in"
        )
        raise InputError(f"{KEY}: {path} is no adapter (it has no {ADAPTER}); {mend}")
    if not (directory / ADAPTER_WEIGHTS).is_file():
        raise InputError(f"{KEY}: {path} has no {ADAPTER_WEIGHTS}; save it again with a current PEFT")
    if adapter_at(name, revision) is not None:
        raise InputError(
            f"{KEY}: model.name is an adapter as well ({name}); name the base there, or leave {KEY} out to merge it"
        )
    base = base_to_go_on_with(directory, name, identity(name, revision).get("revision"))
    return Start(directory, _settings(path, directory), base)


def base_to_go_on_with(directory: Path, name: str, commit: str | None) -> Base:
    """The base ``name`` as it is here now, for the adapter in ``directory``; raises InputError for that of another one.

    Once more after it is loaded: only then is all of a hub model here.
    """
    base = base_at(name, commit)
    if problem := other_base(directory, base):
        raise InputError(f"{KEY}: {directory} is no adapter of {name}: {problem}. Set model.name to its base")
    return base


def _settings(path: str, directory: Path) -> Any:
    """PEFT's LoraConfig in a directory. Raises InputError for one that is more than low-rank matrices."""
    peft = import_peft(KEY)
    read = ADAPTER
    try:
        settings = peft.PeftConfig.from_pretrained(str(directory))
        read = ADAPTER_WEIGHTS
        with safe_open(directory / ADAPTER_WEIGHTS, "pt"):
            pass  # whether it is whole
    except Exception as error:  # libraries raise errors of any class for broken files
        raise InputError(
            f"{KEY}: {directory / read} cannot be read: {reason(error)}; save it again"
        ) from error
    mend = f"merge it into its base (`cagsr export {path} DIRECTORY`), name that as model.name and train a new one"
    if settings.peft_type != "LORA":
        raise InputError(
            f"{KEY}: {path} is an adapter of kind {settings.peft_type.value}, and LoRA can be gone on from; {mend}"
        )
    plain = peft.LoraConfig()
    odd = {
        field.name: getattr(settings, field.name)
        for field in fields(plain)
        if field.name not in KEPT and getattr(settings, field.name) != getattr(plain, field.name)
    }
    written = json.loads((directory / ADAPTER).read_text(encoding="utf-8"))
    known = {field.name for field in fields(plain)}
    odd |= {name: value for name, value in written.items() if name not in known and value}  # of another PEFT
    if settings.init_lora_weights not in FRESH:
        odd["init_lora_weights"] = settings.init_lora_weights
    if settings.task_type not in (None, "CAUSAL_LM", "SEQ_2_SEQ_LM"):
        odd["task_type"] = settings.task_type
    for name, value in odd.items():
        raise InputError(f"{KEY}: {path} has {name}: {value!r:.60} and cannot be gone on from; {mend}")
    settings.inference_mode = False
    settings.base_model_name_or_path = (
        None  # PEFT writes the model's own, and warns where another stands there
    )
    return settings


def names_layers(start: Any) -> bool:
    """Whether an adapter's settings tell one layer from another, so that blocks which are alike do not stay so."""
    if start is None:
        return False
    named = [
        *start.rank_pattern,
        *start.alpha_pattern,
        *(start.target_modules or ()),
        *(start.exclude_modules or ()),
    ]
    return start.layers_to_transform is not None or any(re.search(r"\d", name) for name in named)


def going_on_from(model: PreTrainedModel, start: Start) -> PreTrainedModel:
    """Put an adapter on its base with its weights as they lie there, to be trained, and freeze all else.

    The adapter's weights are float32, whatever they were saved as. Raises InputError for one that does not fit.
    """
    with fitting(model, start.directory, KEY), torch.random.fork_rng([]):
        adapted: Any = put_on(model, start.settings, KEY)
        found = adapted.load_adapter(str(start.directory), "default", is_trainable=True)
        check_complete(found, start.directory, KEY)
    for name, weight in adapted.named_parameters():
        if weight.requires_grad and not weight.isfinite().all():
            raise InputError(
                f"{KEY}: {start.directory} has weights that are not finite ({name}); name an earlier one"
            )
    return cast(PreTrainedModel, adapted)
