"""Identity of models, code and packages: a commit or a hash of the content, because a name alone can move."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from importlib import metadata, resources
from pathlib import Path

__all__ = [
    "code",
    "file_digest",
    "git_commit",
    "identity",
    "is_gguf",
    "settings_digest",
    "tokenizer_beside",
    "versions",
]

# Files of a model's directory that hold weights, in formats that are read or not, or only tell of it.
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf", ".md")
PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "tokenizers",
    "safetensors",
    "peft",
    "bitsandbytes",
    "numpy",
)


def identity(name: str, revision: str | None = None) -> dict[str, str | None]:
    """``name`` and ``revision`` of a hub model, or ``name`` and ``sha256`` of a directory's weights or a GGUF file.

    The revision is the commit that ``revision`` (None: the main branch) leads to now; as given where neither the hub
    nor its cache knows the model, which loading it will report. The hash is over all safetensors files of the
    directory in the order of their names; None where there is none, and of a file that is missing.
    """
    directory = Path(name)
    if is_gguf(name):
        if not os.path.isfile(name):
            return {"name": name, "sha256": None}
        files = [directory]
    elif directory.is_dir():
        files = sorted(directory.glob("*.safetensors"))
        if not files:  # of a hub model only the config is here yet, say
            return {"name": name, "sha256": None}
    else:
        return {"name": name, "revision": _commit(name, revision)}
    return {"name": name, "sha256": _digest_once(tuple((path, path.stat().st_mtime_ns) for path in files))}


def settings_digest(name: str) -> str | None:
    """SHA-256 of a model directory's files other than weights (config, tokenizer); None for a hub model.

    A GGUF file holds all of that itself, but for a tokenizer.json beside it.
    """
    directory = Path(name)
    if is_gguf(name):
        beside = tokenizer_beside(name)
        return None if beside is None else file_digest(beside)
    if not directory.is_dir():
        return None
    return _digest(
        sorted(path for path in directory.iterdir() if path.is_file() and path.suffix not in WEIGHTS)
    )


def is_gguf(name: str) -> bool:
    """Whether a model's name is that of a GGUF file, there or not."""
    return name.lower().endswith(".gguf") and not os.path.isdir(name)


def tokenizer_beside(name: str) -> Path | None:
    """The tokenizer.json in the directory of a GGUF file, which is read in place of the file's own vocabulary."""
    beside = Path(name).absolute().with_name("tokenizer.json")
    return beside if beside.is_file() else None


def file_digest(path: str | Path) -> str:
    """SHA-256 of one file."""
    return _digest([Path(path)])


def code() -> str:
    """SHA-256 of this package's own files."""
    package = Path(str(resources.files("cagsr")))
    return _digest(sorted(path for path in package.rglob("*") if path.suffix in (".py", ".yaml")))


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a run's numbers come from."""
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit of the working directory, with ``+`` when it has changes; None outside a repository."""
    try:
        commit, changes = (
            subprocess.run(
                ["git", *command], capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changes else "")


def _commit(name: str, revision: str | None) -> str | None:
    from huggingface_hub import HfApi, constants  # takes a while, and most commands ask no hub

    try:
        api, cached = HfApi(), constants.HF_HUB_OFFLINE
        return api.resolve_revision(name, revision=revision, local_files_only=cached).resolved
    except Exception:  # no network, no such model, no name of a model: loading it says which
        return revision


@cache
def _digest_once(files: tuple[tuple[Path, int], ...]) -> str:
    """`_digest` of files with the times when they were written: a command asks several times for one model's."""
    return _digest(path for path, _ in files)


def _digest(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()
