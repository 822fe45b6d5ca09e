"""Which model it was: a name alone does not say what was loaded, a commit or a hash of the weights does."""

import hashlib
from pathlib import Path

__all__ = ["identity"]


def identity(name: str, revision: str | None = None, commit: str | None = None) -> dict[str, str | None]:
    """``name`` and ``revision`` of a hub model, or ``name`` and ``sha256`` of a directory's weights.

    ``commit`` is what the hub's revision led to, where the loader knows it. The hash is over all safetensors files
    of the directory in the order of their names.
    """
    directory = Path(name)
    if not directory.is_dir():
        return {"name": name, "revision": commit or revision}
    digest = hashlib.sha256()
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return {"name": name, "sha256": digest.hexdigest()}
