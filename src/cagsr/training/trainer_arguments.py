"""Checks of what a Python program gives to `Trainer`: model, settings, data sets and callbacks."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from cagsr.config import Config
from cagsr.config.training_config import TrainingConfig
from cagsr.data.file_formats import noted
from cagsr.data.readers import Row, rows_of_dataset
from cagsr.errors import InputError
from cagsr.models.loaded import base_of
from cagsr.training.loop import RunObserver

__all__ = [
    "checked_callbacks",
    "checked_config",
    "checked_model",
    "checked_rows",
    "refuse_settings_of_loading",
]


def checked_model(
    model: Any, processing_class: PreTrainedTokenizerBase | None
) -> tuple[PreTrainedModel | None, str | None]:
    """The loaded model, if it is one, and its name. Raises InputError for what is no model."""
    if model is None or isinstance(model, str | os.PathLike):
        if processing_class is not None:
            raise InputError(
                "Trainer: processing_class goes with a loaded model; a name brings its own tokenizer"
            )
        return None, None if model is None else os.fspath(model)
    return model, base_of(model).config.name_or_path or "a loaded model"


def checked_config(args: Any, keys: Mapping[str, Any]) -> Config:
    if args is None:
        args = TrainingConfig()
    if isinstance(args, TrainingConfig):
        return args.as_config(keys)
    if not isinstance(args, Config):
        raise InputError(
            f"Trainer: args must be a TrainingConfig or a Config, got {type(args).__name__}; "
            "cagsr.TrainingConfig has the names of transformers and TRL"
        )
    return Config.checked(args.replaced(keys).model_dump(), "Trainer:") if keys else args


def checked_callbacks(callbacks: Any) -> list[TrainerCallback | RunObserver]:
    told = ("on_start", "on_step", "on_evaluation", "on_warning")
    for one in callbacks if isinstance(callbacks, list | tuple) else [callbacks]:
        known = isinstance(one, TrainerCallback) or all(hasattr(one, name) for name in told)
        if isinstance(one, type) or not known or not isinstance(callbacks, list | tuple):
            raise InputError(
                f"Trainer: callbacks must be a list of TrainerCallback objects, got {one!r:.60}; put objects, not "
                "classes, in a list"
            )
    return list(callbacks)


def checked_rows(name: str, given: Any, first: int) -> list[Row] | None:
    """The rows of a data set, read once; of a stream, the ``first``.

    Raises InputError, with the number of the row, for what is no mapping.
    """
    if given is None:
        return None
    if isinstance(given, str | os.PathLike) or not isinstance(given, Iterable):
        raise InputError(
            f"Trainer: {name}: got {given!r:.60}; give rows, or name a file by data={{'source': ...}}"
        )
    endless = not isinstance(given, Sized | Iterator)  # can be read again, and has no length: IterableDataset
    rows = rows_of_dataset(given, name, first if endless else None)
    for row in rows:
        if not isinstance(row.values, Mapping):
            raise InputError(
                f"Trainer: {row.place}: got {row.values!r:.60}, expected a mapping with a column prompt; give a list "
                "of mappings or one split of a datasets.Dataset (Dataset.from_pandas for a DataFrame)"
            )
    if not rows:
        raise InputError(f"Trainer: {name} is empty; give at least one row")
    if endless and len(rows) == first:
        rows = noted(rows, f"{name}: the first {first} rows of a stream, which are all that is read of it")
    return rows


def refuse_settings_of_loading(config: Config) -> None:
    """Raises InputError for settings that say how to load a model that is loaded already."""
    if config.model.lora is not None and config.model.lora.path is not None:
        raise InputError(
            "Trainer: model.lora.path is for a model that is loaded by name; put the adapter on yours "
            "(peft.PeftModel.from_pretrained(model, path, is_trainable=True)) and leave it out"
        )
    fields = type(config.model).model_fields
    for key in ("revision", "architecture", "dtype", "load_in_4bit", "trust_remote_code"):
        if getattr(config.model, key) != fields[key].default:
            raise InputError(
                f"Trainer: model.{key} is for a model that is loaded by name; set it where you load yours"
            )
