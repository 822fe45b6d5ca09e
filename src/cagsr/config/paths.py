"""Checks of the files and directories that a config names, made before a model is loaded."""

import os
import tempfile
from errno import EDQUOT, ENOSPC
from pathlib import Path

from cagsr.config.loading import Config
from cagsr.config.schema import FILES
from cagsr.errors import InputError, StorageError
from cagsr.io.places import files_named

__all__ = ["check_paths"]


def check_paths(config: Config) -> None:
    """Check the files and directories of a config before a model is loaded.

    Raises InputError for a data or preset file that is missing and for an output directory that is a file or
    cannot be written, and StorageError when the disk is full.
    """
    evaluated = config.data.parts(evaluation=True) if config.data.evaluation_source else []
    for key, parts in (("source", config.data.parts()), ("evaluation_source", evaluated)):
        for part in parts:
            if part.path.lower().endswith(FILES) and not files_named(part.path):
                raise InputError(f"data.{key}: no such file {part.path!r}; correct the path")
    preset = config.reward.preset
    if preset.endswith((".yaml", ".yml")) and not os.path.isfile(preset):
        raise InputError(f"reward.preset: no such file {preset!r}; correct the path")
    directory = Path(config.run.directory)
    existing = _existing(directory)
    if not existing.is_dir():
        raise InputError(f"run.directory: {existing} is a file; choose another directory")
    try:
        with tempfile.TemporaryFile(dir=existing) as probe:
            probe.write(bytes(2**20))
    except OSError as error:
        if error.errno in (ENOSPC, EDQUOT):
            raise StorageError(f"run.directory: no space left for {directory}; free some and retry") from None
        raise InputError(f"run.directory: cannot write in {existing}: {error.strerror}") from None


def _existing(directory: Path) -> Path:
    """The directory, or its nearest parent that exists."""
    for path in (directory, *directory.absolute().parents):
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise InputError(
                f"run.directory: {directory}: {error.strerror}; choose another directory"
            ) from None
        return path
    raise AssertionError("the root exists")
