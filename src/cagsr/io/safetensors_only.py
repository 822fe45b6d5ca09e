"""Check that a model's weights are in safetensors files: its files are data, and no pickle among them is opened."""

import json
from pathlib import Path
from typing import Any

from cagsr.errors import InputError

__all__ = ["hub_file", "only_safetensors", "reason"]

INDEX = "model.safetensors.index.json"
MEND = "; weights are read from safetensors files beside it only, as a pickle can run code. Save it as safetensors."


def only_safetensors(name: str, config: Any, revision: str | None = None) -> None:
    """Refuse a model whose own files lead transformers past ``use_safetensors`` to weights in another format.

    Its config may name the weights file, and an index names the file of every weight. Where neither does, there is
    nothing to refuse. Raises InputError.
    """
    chosen = getattr(config, "transformers_weights", None)
    if chosen is not None and not str(chosen).endswith((".safetensors", ".safetensors.index.json")):
        raise InputError(f"{name}: config.json names {str(chosen)!r} as its weights{MEND}")
    listed = str(chosen or INDEX)
    index = hub_file(name, listed, revision) if listed.endswith(".index.json") else None
    if index is None:
        return
    try:
        files = set(json.loads(index.read_text(encoding="utf-8", errors="replace"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{name}: {listed} is no index of weights; download the model again.") from None
    for file in sorted(map(str, files)):
        if not file.endswith(".safetensors") or Path(file).name != file:
            raise InputError(f"{name}: {listed} leads to {file!r}{MEND}")


def hub_file(name: str, file: str, revision: str | None) -> Path | None:
    """Path of a file of the model ``name``, fetched where that is on the hub; None where there is none, or no hub."""
    from transformers.utils import cached_file

    path = cached_file(
        name,
        file,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if path is None else Path(path)


def reason(error: Exception) -> str:
    """First line of a library's error, with the error's class in front where the line alone would not be understood."""
    words = (str(error).strip() or type(error).__name__).splitlines()[0]
    return (
        words if isinstance(error, OSError | ValueError | InputError) else f"{type(error).__name__}: {words}"
    )
