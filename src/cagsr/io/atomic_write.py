"""Atomic writes and renames: a reader, a crash or a full disk meets the old file or the new one, never a part.

Nothing here imports torch.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EDQUOT, EFBIG, EINVAL, ENOSPC, ENOTSUP
from pathlib import Path

from cagsr.errors import CagsrError, InputError, StorageError

__all__ = [
    "place_atomically",
    "reading",
    "refuse_existing",
    "storing",
    "sync_directory",
    "sync_file",
    "write_atomically",
]

NO_ROOM = (ENOSPC, EDQUOT, EFBIG)
OF_WRITING = ("(os error ", "iostream error", "inline_container", "PytorchStreamWriter")
"""Parts of the messages with which safetensors and tokenizers (both Rust) and torch report a failed write."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Context manager that turns every failure to read into a StorageError that names ``path``."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}") from error


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Context manager that turns every failure to write into a StorageError that names ``path``."""
    try:
        yield
    except OSError as error:
        mend = "; free some space and continue with --resume" if error.errno in NO_ROOM else ""
        raise StorageError(f"{path} cannot be written: {error.strerror or error}{mend}") from error
    except Exception as error:
        # Of torch, safetensors or tokenizers, none of which is imported here: told by its text.
        if isinstance(error, CagsrError) or not any(mark in str(error) for mark in OF_WRITING):
            raise
        raise StorageError(
            f"{path} cannot be written: {str(error).splitlines()[0]}; free some space and continue with --resume"
        ) from error


def refuse_existing(path: Path, option: str) -> None:
    """Raise InputError where the output file ``path``, given by ``option``, exists; call it before any work is done."""
    if path.exists():
        raise InputError(f"{option}: {path} exists already; remove it, or name another file")


def write_atomically(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` so that a reader, or a crash, meets the old file or the new one whole.

    Raises StorageError; the old file is then untouched.
    """
    staging = path.with_name(f".{path.name}.staging")
    with storing(path):
        try:
            with staging.open("w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            staging.replace(path)
        except OSError:
            staging.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def place_atomically(staging: Path, final: Path) -> None:
    """Move every file of ``staging`` to its place in ``final``, each whole; what else lies in ``final`` stays.

    Raises StorageError, and OSError where a file of ``staging`` vanishes meanwhile.
    """
    with storing(final):
        files = sorted(path for path in staging.rglob("*") if path.is_file())
        for path in files:
            sync_file(path)
        for path in files:
            target = final / path.relative_to(staging)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
        for directory in sorted((path for path in staging.rglob("*") if path.is_dir()), reverse=True):
            directory.rmdir()
        staging.rmdir()
        sync_directory(final)
        sync_directory(final.parent)


def sync_file(path: Path) -> None:
    """Force a file's content to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Force a directory's entries to the disk (fsync): a power cut can otherwise lose a rename, though the content is
    safe.
    """
    try:
        sync_file(path)
    except OSError as error:
        if error.errno not in (EINVAL, ENOTSUP):  # some network file systems know it for files only
            raise
