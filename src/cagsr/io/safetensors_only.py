"""Check that a model's weights are in safetensors files: its files are data, and no pickle among them is opened."""

import json
from pathlib import Path
from typing import Any

from cagsr.errors import InputError

__all__ = ["only_safetensors", "reason"]

INDEX = "model.safetensors.index.json"


def only_safetensors(name: str, config: Any, revision: str | None = None) -> None:
    """Refuse a model whose own files lead transformers past ``use_safetensors`` to weights in another format.

    Its config may name the weights file, and an index names the file of every weight. Where neither does, there is
    nothing to refuse. Raises InputError.
    """
    chosen = getattr(config, "transformers_weights", None)
    if chosen is not None and not str(chosen).endswith((".safetensors", ".safetensors.index.json")):
        raise InputError(f"{name}: config.json names {str(chosen)!r} as its weights{_MEND}")
    index = _read(name, str(chosen or INDEX), revision)
    if index is None:
        return
    try:
        files = set(json.loads(index)["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"{name}: {chosen or INDEX} is no index of weights; download the model again."
        ) from None
    for file in sorted(map(str, files)):
        if not file.endswith(".safetensors") or Path(file).name != file:
            raise InputError(f"{name}: {chosen or INDEX} leads to {file!r}{_MEND}")


_MEND = "; weights are read from safetensors files beside it only, as a pickle can run code. Save it as safetensors."


def _read(name: str, file: str, revision: str | None) -> str | None:
    """The text of an index among a model's files; None where there is none."""
    if not file.endswith(".index.json"):
        return None
    from transformers.utils import cached_file

    path = cached_file(
        name,
        file,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if path is None else Path(path).read_text(encoding="utf-8", errors="replace")


def reason(error: Exception) -> str:
    """First line of a library's error, with the error's class in front where the line alone would not be understood."""
    words = (str(error).strip() or type(error).__name__).splitlines()[0]
    return (
        words if isinstance(error, OSError | ValueError | InputError) else f"{type(error).__name__}: {words}"
    )
