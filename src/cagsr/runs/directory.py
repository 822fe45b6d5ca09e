"""The run directory: the only contract between training and whatever reads a run later.

    runs/NAME/  config.yaml      as resolved
                run.json         id, start, git commit, and the identity: what must be the same to go on
                run.lock         who writes here, since when
                metrics.jsonl    a row a step
                candidates.jsonl prompt, response, signals, reward and attention of a sample
                evaluations.jsonl  greedy responses to some development prompts at every evaluation; step 0: the base
                responses.jsonl  held-out prompts, what was answered, every metric of it (comparisons and demos)
                heads.json       the attention heads that the reward reads, where they were learnt
                summary.json     the outcome
                lm-eval.json     what lm-evaluation-harness found of base and result

JSON is pure ASCII (other characters as escapes) so that any text goes through to the byte, half surrogates
included, and NaN never gets in. Nothing here imports torch, and nothing deletes what it did not write.
"""

import hashlib
import json
import math
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cagsr.errors import InputError, NumericsError, StorageError
from cagsr.io.atomic_write import reading, storing, sync_file, write_atomically
from cagsr.io.lock import LOCK, Lock
from cagsr.io.provenance import git_commit

__all__ = ["RunDirectory", "fingerprint"]

RUN, CONFIG, METRICS, CANDIDATES, EVALUATIONS, RESPONSES, HEADS, SUMMARY = (
    "run.json",
    "config.yaml",
    "metrics.jsonl",
    "candidates.jsonl",
    "evaluations.jsonl",
    "responses.jsonl",
    "heads.json",
    "summary.json",
)
LM_EVAL = "lm-eval.json"
# Rows with their steps: a run that goes on drops those of the steps that it repeats.
BY_STEP = (METRICS, CANDIDATES, EVALUATIONS)
# The only files that a start leaves behind when it is killed before its run exists.
BEFORE_A_RUN = {LOCK, f".{RUN}.staging"}


@dataclass(frozen=True)
class RunDirectory:
    """An open run, locked for this process. Get one from `create` or `resume`, and `close` it.

    Under several processes only the main one writes.
    """

    path: Path
    id: str
    lock: Lock | None = field(default=None, compare=False, repr=False)

    @classmethod
    def create(cls, path: str | Path, config: str, identity: Mapping[str, Any]) -> "RunDirectory":
        """Start a run in a directory that is new or empty.

        ``config`` is the text of config.yaml; ``identity`` names what must be the same when the run is resumed.
        Raises InputError when the directory is in use, by a run or a process (named) or by other files, and
        StorageError.
        """
        path = Path(path)
        with storing(path):
            path.mkdir(parents=True, exist_ok=True)
        cls.refuse_used(path)
        run = cls(path, secrets.token_hex(4), Lock.take(path))
        try:
            cls.refuse_used(path)  # of two starts at once the other may have come first
            about = {
                "id": run.id,
                "started": _now(),
                "git": git_commit(),
                "identity": dict(identity),
                "changes": [],
            }
            write_atomically(path / RUN, _json(about, RUN, indent=2) + "\n")
            write_atomically(path / CONFIG, config)
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def resume(cls, path: str | Path) -> "RunDirectory":
        """Open a run to resume it; `rewind` comes next.

        Raises InputError when there is no run or another process has it, and StorageError when it is damaged.
        """
        path = Path(path)
        identity = _about(path)["id"]
        return cls(path, identity, Lock.take(path))

    def close(self) -> None:
        """Release the lock, so that another process may write here."""
        if self.lock is not None:
            self.lock.release()

    def discard(self) -> None:
        """Take the files of a start that failed away, where nothing else is there: the place is free again."""
        # The lock stays: another process may be waiting for it.
        if {entry.name for entry in self.path.iterdir()} <= {RUN, CONFIG, LOCK}:
            (self.path / CONFIG).unlink(missing_ok=True)
            (self.path / RUN).unlink()

    def rewind(self, step: int | None) -> None:
        """Drop the rows of steps after ``step`` (None: all), and a torn last line: resuming writes them again."""
        for name in BY_STEP:
            if (self.path / name).exists():
                rows = self.rows(name) if step is not None else []
                kept = [row for row in rows if row.get("step", 0) <= step]
                write_atomically(self.path / name, "".join(_json(row, name) + "\n" for row in kept))

    def drop_evaluation(self, step: int) -> None:
        """Drop the evaluation after ``step``: it is made again."""
        for name, numbers in ((METRICS, "evaluation/reward"), (EVALUATIONS, "step")):
            if (self.path / name).exists():
                kept = [row for row in self.rows(name) if row.get("step") != step or numbers not in row]
                write_atomically(self.path / name, "".join(_json(row, name) + "\n" for row in kept))

    def summary(self) -> dict[str, Any] | None:
        """The content of summary.json, None before the run ended."""
        path = self.path / SUMMARY
        if not path.exists():
            return None
        try:
            with reading(path):
                return dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            raise StorageError(f"{path} is damaged; remove it and go on with --resume.") from None

    @staticmethod
    def is_begun(path: str | Path) -> bool:
        """Whether ``path`` holds a run to resume, or files in the way of a new one; raises StorageError."""
        path = Path(path)
        with reading(path):
            return path.exists() and not (
                path.is_dir() and {entry.name for entry in path.iterdir()} <= BEFORE_A_RUN
            )

    @staticmethod
    def refuse_used(path: str | Path) -> None:
        """Raise InputError when a new run cannot be created in ``path``: it holds a run (named) or other files."""
        path = Path(path)
        with reading(path):
            found = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
        if RUN in found:
            try:
                step = max((row.get("step", 0) for row in _rows(path / METRICS)), default=0)
                owner = f"run {_about(path)['id']} (step {step})"
            except StorageError:
                owner = "a run whose records are damaged"
            raise InputError(f"{path} belongs to {owner}. Use --resume or another directory.")
        others = [name for name in found if name not in BEFORE_A_RUN]
        if others:
            shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
            raise InputError(f"{path} holds files of no run ({shown}). Choose another directory.")

    @classmethod
    def move_aside(cls, path: str | Path) -> Path | None:
        """Rename the directory of a run to ``NAME-ID``; returns its new path, None when ``path`` holds no run."""
        path = Path(path)
        if not (path / RUN).is_file():
            return None
        aside = path.with_name(f"{path.name}-{_about(path)['id']}")
        with storing(aside):
            if aside.exists():
                raise InputError(
                    f"{aside} exists already, so {path} cannot be moved there. Choose another directory."
                )
            return path.rename(aside)

    def identity(self) -> dict[str, Any]:
        """What this run was started with, by name. Raises StorageError."""
        return _about(self.path)["identity"]

    def check_identity(self, identity: Mapping[str, Any]) -> None:
        """Raise InputError with a line for every field of ``identity`` that differs from what this run started with.

        Fields that only one of both has are not compared.
        """
        before, new = _about(self.path)["identity"], json.loads(_json(dict(identity), RUN))
        changed = {name: value for name, value in new.items() if before.get(name, value) != value}
        if changed:
            lines = [
                f"  {name}: {_shown(value)}, was {_shown(before[name])}" for name, value in changed.items()
            ]
            raise InputError(
                f"{self.path} was started with something else:\n" + "\n".join(lines) + "\n"
                "Go on with what it was started with, or pass --accept-changes to go on with this."
            )

    def settle(self, identity: Mapping[str, Any]) -> None:
        """Record in run.json the ``identity`` that the run goes on with, and what changed when."""
        about = _about(self.path)
        before, new = about["identity"], json.loads(_json(dict(identity), RUN))
        if before == {**before, **new}:
            return
        changed = {name: value for name, value in new.items() if before.get(name, value) != value}
        about["identity"] = {**before, **new}
        if changed:
            was = {name: before[name] for name in changed}
            about["changes"] = [*about["changes"], {"at": _now(), "was": was, "is": changed}]
        write_atomically(self.path / RUN, _json(about, RUN, indent=2) + "\n")

    def sync(self) -> None:
        """Force the rows that were written so far to the disk."""
        for name in BY_STEP:
            if (self.path / name).exists():
                with storing(self.path / name):
                    sync_file(self.path / name)

    def add_metrics(self, step: int, row: Mapping[str, Any]) -> None:
        """Append one row to metrics.jsonl; raises NumericsError naming a number that is not finite."""
        self._append(METRICS, [{"step": step, **row}])

    def add_candidates(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows to candidates.jsonl; raises NumericsError naming a number that is not finite."""
        self._append(CANDIDATES, [{"step": step, **row} for row in rows])

    def add_evaluation(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append responses to evaluations.jsonl; raises NumericsError naming a number that is not finite."""
        self._append(EVALUATIONS, [{"step": step, **row} for row in rows])

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json atomically; raises NumericsError and StorageError."""
        write_atomically(self.path / SUMMARY, _json(summary, SUMMARY, indent=2) + "\n")

    def rows(self, name: str = METRICS) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl (or of another file of BY_STEP); a last line torn by a kill is left out.

        Raises StorageError when another line is damaged.
        """
        return _rows(self.path / name)

    def _append(self, name: str, rows: list[dict[str, Any]]) -> None:
        # One write for all rows: a kill tears at most the last line.
        text = "".join(_json(row, f"{name} step {row['step']}") + "\n" for row in rows)
        with storing(self.path / name), (self.path / name).open("a", encoding="ascii") as file:
            file.write(text)


def fingerprint(texts: Iterable[str]) -> str:
    """SHA-256 of a sequence of texts, in order: 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()


def _about(path: Path) -> dict[str, Any]:
    if not (path / RUN).exists():
        raise InputError(f"{path} holds no run to resume: it has no {RUN}. Choose another directory.")
    try:
        with reading(path / RUN):
            about = json.loads((path / RUN).read_text(encoding="ascii"))
        return {**about, "id": str(about["id"]), "identity": dict(about["identity"])}
    except (ValueError, KeyError, TypeError):
        raise StorageError(f"{path / RUN} is damaged; the run cannot be told from another.") from None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _shown(value: Any) -> str:
    """A value of an identity as messages show it: short, a hash by its beginning."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:12]}..."


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with reading(path):
        lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            rows.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            raise StorageError(
                f"{path}:{number} is damaged: not a row of JSON. Remove that line to go on."
            ) from None
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
