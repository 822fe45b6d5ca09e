"""Manifest of a directory: size and SHA-256 of every file, so that damaged or unfinished content is recognised.

``MANIFEST.json`` holds the size and SHA-256 of every file, whose directory it is, and a hash of all that. It is
written last, which seals the directory. One without it was never finished; one that differs from it is damaged.
Nothing here imports torch.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from cagsr.io.atomic_write import storing, sync_directory, sync_file, write_atomically
from cagsr.io.provenance import file_digest

__all__ = ["MANIFEST", "damage", "manifest", "remove", "seal", "sealed_files"]

MANIFEST = "MANIFEST.json"


def seal(directory: Path, **about: Any) -> None:
    """Write the manifest of all files in ``directory``, with ``about`` in it, and force everything to the disk.

    Raises StorageError.
    """
    with storing(directory):
        files = {}
        for path in sorted(path for path in directory.rglob("*") if path.is_file()):
            sync_file(path)
            written = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
            files[path.relative_to(directory).as_posix()] = written
        for inner in {path.parent for path in directory.rglob("*")}:
            sync_directory(inner)
    write_atomically(directory / MANIFEST, _text({**about, "files": files}))


def manifest(directory: Path) -> dict[str, Any]:
    """Read and verify the manifest of a directory. Raises ValueError, with the reason, for a missing, torn or changed
    one.
    """
    try:
        text = (directory / MANIFEST).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"it has no {MANIFEST}, so it was never finished") from None
    except (OSError, UnicodeDecodeError):
        raise ValueError(f"its {MANIFEST} cannot be read") from None
    try:
        content = json.loads(text)
        del content["seal"]
        # Byte for byte: a manifest that was changed is not believed even where it still reads the same.
        intact = _text(content) == text and all(
            set(entry) == {"bytes", "sha256"}
            and not Path(name).is_absolute()
            and ".." not in Path(name).parts
            for name, entry in content["files"].items()
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        content, intact = {}, False
    if not intact:
        raise ValueError(f"its {MANIFEST} was changed")
    return content


def damage(directory: Path) -> str | None:
    """Describe how a sealed directory differs from its manifest; None when every file is as it was written.

    Files that the manifest does not name are not looked at.
    """
    try:
        files = manifest(directory)["files"]
    except ValueError as error:
        return str(error)
    for name, expected in files.items():
        path = directory / name
        try:
            size = path.stat().st_size
            if size != expected["bytes"]:
                return f"{name} has {size} bytes, not {expected['bytes']}"
            if file_digest(path) != expected["sha256"]:
                return f"{name} was changed"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror or error}"
    return None


def sealed_files(directory: Path) -> list[Path]:
    """The files that the manifest names, and the manifest. Raises ValueError as `manifest` does."""
    return [*(directory / name for name in manifest(directory)["files"]), directory / MANIFEST]


def remove(directory: Path) -> None:
    """Delete what the manifest names, and the directory if that leaves it empty: nothing that we did not write.

    Raises ValueError as `manifest` does, and StorageError.
    """
    files = sealed_files(directory)
    with storing(directory):
        # The manifest goes last: what is left of a removal that is cut short can still be removed.
        for path in files:
            path.unlink(missing_ok=True)
        inner = {
            parent for path in files for parent in path.parents if directory in (parent, *parent.parents)
        }
        for folder in sorted(inner, key=lambda path: len(path.parts), reverse=True):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _text(content: dict[str, Any]) -> str:
    body = json.dumps(content, sort_keys=True)
    return (
        json.dumps({**content, "seal": hashlib.sha256(body.encode()).hexdigest()}, indent=1, sort_keys=True)
        + "\n"
    )
