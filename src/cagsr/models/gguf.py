"""GGUF files as models: each is converted once, into a directory in the user's cache, and read from there."""

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

import transformers
from rich.console import Console

from cagsr.errors import CagsrError, InputError, ran_out_of_memory
from cagsr.io.atomic_write import storing, sync_directory, sync_file
from cagsr.io.provenance import file_digest, identity, is_gguf, tokenizer_beside
from cagsr.io.safetensors_only import reason
from cagsr.io.terminal import say
from cagsr.io.user_cache import user_cache
from cagsr.models import gguf_conversion, gguf_tokenizer

__all__ = ["files_of", "weights_of"]

ABOUT = "gguf.json"
"""What a converted copy says of its origin: a JSON object with ``file``, ``sha256`` and ``weights``."""


def files_of(name: str) -> str:
    """The directory to load the model ``name`` from: the converted copy of a GGUF file; any other name is its own.

    The copy (float32 weights in safetensors, config, tokenizer) lies in ``cagsr/gguf`` of the user's cache. It is made
    anew where the file, the conversion or the version of transformers is another one. What the weights are is printed
    to the standard error stream, once a process.

    Raises InputError for a file that is missing, damaged or cannot be read exactly, and StorageError.
    """
    if not is_gguf(name):
        return name
    if not os.path.isfile(name):
        raise InputError(f"model.name: there is no file {name!r}")
    # Not resolved: caches of hubs keep a file under another name than its link's.
    path = Path(name).absolute()
    with _named(name):
        return str(_copy(path, path.stat().st_mtime_ns, tokenizer_beside(name)))


def weights_of(name: str) -> str | None:
    """What the weights of a GGUF file are, in words; None for any other name. Raises what `files_of` raises."""
    return _said(Path(files_of(name))) if is_gguf(name) else None


@cache  # a command asks several times for one model's files
def _copy(path: Path, _written: int, beside: Path | None) -> Path:
    """The directory of a file's converted copy, which is made where there is none.

    What is made depends on the file, on the tokenizer ``beside`` it, and on what converts: the copy's name does too.
    """
    made_of = [file_digest(source) for source in (gguf_conversion.__file__, gguf_tokenizer.__file__)]
    made_of += [transformers.__version__, *([file_digest(beside)] if beside else [])]
    digest = str(identity(str(path))["sha256"])
    place = user_cache("gguf") / digest[:16] / hashlib.sha256(repr(made_of).encode()).hexdigest()[:8]
    with _alone(place.parent):
        if not place.is_dir():
            _convert(path, place, beside, digest)
    _tell(f"{path}: {_said(place)}")
    return place


def _convert(path: Path, place: Path, beside: Path | None, digest: str) -> None:
    """Make the converted copy in a directory of its own and rename it, so that what is at ``place`` is whole."""
    staging = place.with_name(f".{place.name}.staging")
    shutil.rmtree(staging, ignore_errors=True)  # of a process that was killed: nobody else has the lock
    with storing(place):
        staging.mkdir()
    try:
        started = partial(_tell, f"{path}: converted to float32 in {place}, this once")
        weights = gguf_conversion.convert(path, staging, beside, started)
        about = {"file": str(path), "sha256": digest, "weights": weights}
        with storing(place):
            (staging / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
            for file in staging.iterdir():
                sync_file(file)
            sync_directory(staging)
            staging.rename(place)
            sync_directory(place.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Context manager in which no other process converts into ``directory``, made if need be; it waits for one that
    does.
    """
    with storing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with storing(directory):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _said(place: Path) -> str:
    weights = json.loads((place / ABOUT).read_text(encoding="utf-8"))["weights"]
    rounded = ", a rounded copy of the model: say so beside its figures" * (
        weights not in gguf_conversion.EXACT
    )
    return f"{weights} in a GGUF file{rounded}; read as float32 from {place}"


def _tell(text: str) -> None:
    """Print to the standard error stream, from one process of a launcher's."""
    if os.environ.get("RANK", "0") == "0":
        say(Console(file=sys.stderr), text)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Context manager that turns what libraries raise for a broken file into an InputError with its name."""
    try:
        yield
    except InputError as error:
        raise type(error)(f"model.name: {name!r} {error}") from error
    except CagsrError:
        raise
    except Exception as error:  # libraries raise errors of any class for broken files
        if ran_out_of_memory(error):
            raise
        raise InputError(
            f"model.name: {name!r} cannot be read as a GGUF file ({reason(error)}); if it is damaged or cut short, "
            "download it again"
        ) from error
