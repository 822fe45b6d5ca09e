"""The run directory: the only contract between training and whatever reads a run later.

    runs/NAME/  config.yaml      as resolved
                run.json         id, start, versions, git commit, hashes of config and data
                metrics.jsonl    a row a step
                candidates.jsonl prompt, response, signals, reward and attention of a sample
                responses.jsonl  held-out prompts, what was answered, every metric of it (comparisons and demos)
                summary.json     the outcome

JSON is pure ASCII (other characters as escapes) so that any text goes through to the byte, half surrogates
included, and NaN never gets in. Nothing here imports torch, and nothing deletes what it did not write.
"""

import hashlib
import json
import math
import os
import secrets
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from errno import EDQUOT, ENOSPC
from importlib import metadata
from pathlib import Path
from typing import Any

from cagsr.errors import InputError, NumericsError, StorageError

__all__ = ["RunDirectory", "fingerprint", "write_atomically"]

RUN, CONFIG, METRICS, CANDIDATES, RESPONSES, SUMMARY = (
    "run.json",
    "config.yaml",
    "metrics.jsonl",
    "candidates.jsonl",
    "responses.jsonl",
    "summary.json",
)
PACKAGES = (
    "cagsr",
    "torch",
    "transformers",
    "accelerate",
    "tokenizers",
    "datasets",
    "safetensors",
    "peft",
    "numpy",
)


@dataclass(frozen=True)
class RunDirectory:
    """An open run. Get one from `create` or `resume`; under several processes only the main one writes."""

    path: Path
    id: str

    @classmethod
    def create(cls, path: str | Path, config: str, hashes: Mapping[str, str]) -> "RunDirectory":
        """Start a run in a directory that is new or empty.

        ``config`` is the text of config.yaml; ``hashes`` name what must be the same when the run is resumed.
        Raises InputError when the directory is in use, by a run (named) or by other files, and StorageError.
        """
        path = Path(path)
        run = cls(path, secrets.token_hex(4))
        about = {
            "id": run.id,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": _versions(),
            "git": _git_commit(),
            "hashes": dict(hashes),
        }
        with _storing(path):
            path.mkdir(parents=True, exist_ok=True)
            cls.refuse_used(path)
            try:
                # Of two starts at once only one can create the file; the other learns who holds the place.
                with (path / RUN).open("x", encoding="ascii") as file:
                    file.write(_json(about, RUN, indent=2) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
            except FileExistsError:
                cls.refuse_used(path)
        write_atomically(path / CONFIG, config)
        return run

    @classmethod
    def resume(cls, path: str | Path, step: int) -> "RunDirectory":
        """Open a run to continue after ``step``; rows of later steps, and a torn last line, are dropped.

        Raises InputError when there is no run, and StorageError when its records are damaged.
        """
        path = Path(path)
        run = cls(path, _about(path)["id"])
        for name in (METRICS, CANDIDATES):
            kept = [row for row in run.rows(name) if row.get("step", 0) <= step]
            if (path / name).exists():
                write_atomically(path / name, "".join(_json(row, name) + "\n" for row in kept))
        return run

    @staticmethod
    def refuse_used(path: str | Path) -> None:
        """Raise InputError when a new run cannot be created in ``path``: it holds a run (named) or other files."""
        path = Path(path)
        found = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
        if RUN in found:
            try:
                step = max((row.get("step", 0) for row in _rows(path / METRICS)), default=0)
                owner = f"run {_about(path)['id']} (step {step})"
            except StorageError:
                owner = "a run that is starting just now or whose records are damaged"
            raise InputError(f"{path} belongs to {owner}. Use --resume or another directory.")
        if found:
            shown = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
            raise InputError(f"{path} holds files of no run ({shown}). Choose another directory.")

    @classmethod
    def move_aside(cls, path: str | Path) -> Path | None:
        """Rename the directory of a run to ``NAME-ID``; returns its new path, None when ``path`` holds no run."""
        path = Path(path)
        if not (path / RUN).is_file():
            return None
        aside = path.with_name(f"{path.name}-{_about(path)['id']}")
        with _storing(aside):
            if aside.exists():
                raise InputError(
                    f"{aside} exists already, so {path} cannot be moved there. Choose another directory."
                )
            return path.rename(aside)

    def changed(self, hashes: Mapping[str, str]) -> list[str]:
        """The names among ``hashes`` whose value is not the one this run started with."""
        started = _about(self.path)["hashes"]
        return [name for name, value in hashes.items() if started.get(name) != value]

    def add_metrics(self, step: int, row: Mapping[str, Any]) -> None:
        """Append one row to metrics.jsonl; raises NumericsError naming a number that is not finite."""
        self._append(METRICS, [{"step": step, **row}])

    def add_candidates(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows to candidates.jsonl; raises NumericsError naming a number that is not finite."""
        self._append(CANDIDATES, [{"step": step, **row} for row in rows])

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json whole or not at all; raises NumericsError and StorageError."""
        write_atomically(self.path / SUMMARY, _json(summary, SUMMARY, indent=2) + "\n")

    def rows(self, name: str = METRICS) -> list[dict[str, Any]]:
        """What metrics.jsonl or candidates.jsonl holds; a last line torn by a kill is left out.

        Raises StorageError when another line is damaged.
        """
        return _rows(self.path / name)

    def _append(self, name: str, rows: list[dict[str, Any]]) -> None:
        # One write for all rows: a kill tears at most the last line.
        text = "".join(_json(row, f"{name} step {row['step']}") + "\n" for row in rows)
        with _storing(self.path / name), (self.path / name).open("a", encoding="ascii") as file:
            file.write(text)


def write_atomically(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` so that a reader, or a crash, meets the old file or the new one whole.

    Raises StorageError; the old file is then untouched.
    """
    staging = path.with_name(f".{path.name}.staging")
    with _storing(path):
        try:
            with staging.open("w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            staging.replace(path)
        except OSError:
            staging.unlink(missing_ok=True)
            raise
        _sync_directory(path.parent)


def fingerprint(texts: Iterable[str]) -> str:
    """SHA-256 of a sequence of texts, in order: 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()


def _about(path: Path) -> dict[str, Any]:
    try:
        about = json.loads((path / RUN).read_text(encoding="ascii"))
        return {"id": str(about["id"]), "hashes": dict(about["hashes"])}
    except FileNotFoundError:
        raise InputError(f"{path} holds no run to resume: it has no {RUN}.") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise StorageError(f"{path / RUN} is damaged; the run cannot be told from another.") from None


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with _storing(path):
        lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            rows.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            raise StorageError(f"{path}:{number} is damaged: not a row of JSON.") from None
    return rows


def _json(value: Any, where: str, indent: int | None = None) -> str:
    try:
        return json.dumps(value, allow_nan=False, indent=indent)
    except ValueError:
        names = ", ".join(f"{name} is {number}" for name, number in _not_finite(value, ""))
        raise NumericsError(f"{where}: {names}; a record holds finite numbers only") from None


def _not_finite(value: Any, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, float) and not math.isfinite(value):
        yield name, value
    elif isinstance(value, Mapping | list | tuple):
        parts = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, part in parts:
            yield from _not_finite(part, f"{name}.{key}" if name else str(key))


@contextmanager
def _storing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        mend = "; free some space and continue with --resume" if error.errno in (ENOSPC, EDQUOT) else ""
        raise StorageError(f"{path} cannot be written: {error.strerror or error}{mend}") from error


def _sync_directory(path: Path) -> None:
    # Without it a rename can be lost in a power cut although the file's content is safe.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _versions() -> dict[str, str]:
    versions = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _git_commit() -> str | None:
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
