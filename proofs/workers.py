"""Proofs cut into shards, each run by a process of its own that may die, raise or hang without taking the rest along.

Every process leads its own session, so whatever a proof started ends with it, and works in a temporary directory
that is removed after it.
"""

import ast
import contextlib
import multiprocessing
import os
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from multiprocessing.connection import Connection, wait
from pathlib import Path
from random import Random
from typing import Any

SHARDS = 4
"""Of a full proof; a scaled one has fewer. The number of workers changes nothing: a seed means the same anywhere."""

LIMIT = 600
"""Seconds without an item done after which a shard counts as hung."""

GRACE = 5
"""Seconds in which a worker that is through may end by itself, and in which what was killed should be gone."""

LITERALS = ("TITLE", "PROMISE", "SHARDS", "ALONE", "LIMIT")

_spawned = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Proof:
    """A proof module by what its source says in literals; importing it takes seconds and is left to the workers."""

    name: str
    promise: int
    title: str
    shards: int = SHARDS
    alone: bool = False
    limit: float = LIMIT

    @classmethod
    def of(cls, name: str) -> "Proof":
        """Raises ModuleNotFoundError; KeyError where PROMISE or TITLE is missing; ValueError where one is computed."""
        spec = find_spec(name)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"no proof module {name}")
        found: dict[str, Any] = {}
        for statement in ast.parse(Path(spec.origin).read_text()).body:
            match statement:
                case (
                    ast.Assign(targets=[ast.Name(id=constant)], value=ast.expr() as value)
                    | ast.AnnAssign(target=ast.Name(id=constant), value=ast.expr() as value)
                ) if constant in LITERALS:
                    found[constant] = ast.literal_eval(value)
        alone = found.get("ALONE", False)
        whole = alone or not found.get("SHARDS", True)
        limit = found.get("LIMIT", LIMIT)
        return cls(name, found["PROMISE"], found["TITLE"], 1 if whole else SHARDS, alone, limit)


@dataclass
class Result:
    """What the shards of one proof have come to so far. ``seconds`` are those of all its workers together."""

    proof: Proof
    open_shards: int
    total: int | None = None
    done: int = 0
    failures: list[str] = field(default_factory=list)
    sums: Counter[str] = field(default_factory=Counter)
    figures: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class _Shard:
    """The part of a proof that falls to one worker: its name, which of how many, and of how much of the count."""

    proof: str
    number: int
    shards: int
    scale: float
    seed: int


def run(
    proofs: Sequence[Proof], scale: float, seed: int, jobs: int, show: Callable[[Result], None]
) -> list[Result]:
    """Run all shards, ``jobs`` at a time; those of proofs that must be alone at the end, one by one.

    ``show`` is called whenever a result may have changed.
    """
    results, pending = [], []
    for proof in sorted(proofs, key=lambda proof: (proof.alone, proof.promise)):
        shards = max(1, round(proof.shards * scale))
        result = Result(proof, shards)
        results.append(result)
        pending += [(result, _Shard(proof.name, number, shards, scale, seed)) for number in range(shards)]
    running: list[_Running] = []
    try:
        while pending or running:
            while pending and len(running) < (1 if pending[0][0].proof.alone else jobs):
                running.append(_Running(*pending.pop(0)))
            wait([worker.connection for worker in running], timeout=0.2)
            for worker in [*running]:
                if worker.look():
                    running.remove(worker)
                show(worker.result)
    finally:
        for worker in running:
            worker.end()
    return sorted(results, key=lambda result: result.proof.promise)


class _Running:
    """One shard at work, seen from outside."""

    def __init__(self, result: Result, shard: _Shard) -> None:
        self.result, self.shard = result, shard
        self.directory = tempfile.TemporaryDirectory(prefix="prove-", ignore_cleanup_errors=True)
        self.connection, theirs = _spawned.Pipe()
        self.process = _spawned.Process(target=_work, args=(theirs, shard, Path(self.directory.name)))
        self.started = self.heard = time.monotonic()
        self.items, self.proved, self.over = 0, False, False
        self.process.start()
        theirs.close()

    def look(self) -> bool:
        """Take in what the worker has sent; True once it is over, for whatever reason, and nothing is left of it."""
        code = self.process.exitcode  # asked before reading, so that its last words are not missed
        # A worker that dies closes the connection, perhaps within a message.
        with contextlib.suppress(EOFError, OSError):
            while not self.over and self.connection.poll():
                self._take(*self.connection.recv())
                self.heard = time.monotonic()
        if self.over:
            self.process.join(GRACE)  # libraries clean up at exit
        elif code is None:
            if time.monotonic() - self.heard <= self.result.proof.limit:
                return False
            self._fail(f"{self.result.proof.limit:g} s without an item done")
        else:
            self._fail(f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}")
        self.end()
        return True

    def _take(self, kind: str, value: Any) -> None:
        result = self.result
        match kind:
            case "total":
                result.total = value
            case "item":
                self.items += 1
                result.done += 1
                result.sums.update(value)
            case "failures":
                result.failures += value
                self._close()
                # The last one is asked what the sums of all of them say.
                self.connection.send(None if result.open_shards else result.sums)
            case "figures":
                result.figures = value or result.figures
                self.over = True

    def _fail(self, how: str) -> None:
        log = Path(self.directory.name, "log")
        words = log.read_text(errors="replace").split("\n") if log.exists() else []
        said = next((f"; it last said: {line.strip()}" for line in reversed(words) if line.strip()), "")
        self.result.failures.append(
            f"shard {self.shard.number + 1} of {self.shard.shards}: {how}, after {self.items} items{said}"
        )
        self._close()

    def _close(self) -> None:
        self.result.open_shards -= not self.proved
        self.proved = True

    def end(self) -> None:
        """Kill the worker and all that it started, and remove its directory."""
        self.process.kill()  # it may have had no session of its own yet
        self.process.join()
        assert self.process.pid is not None, "it was started"
        end = time.monotonic() + GRACE
        with contextlib.suppress(ProcessLookupError):
            # What was killed may write into the directory until it is gone; it is nobody's child, so only asking tells.
            while time.monotonic() < end:
                os.killpg(self.process.pid, signal.SIGKILL)
                time.sleep(0.01)
        self.connection.close()
        self.directory.cleanup()
        self.result.seconds += time.monotonic() - self.started


def _work(connection: Connection, shard: _Shard, directory: Path) -> None:
    os.setsid()
    log = os.open(directory / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    place = directory / "place"
    place.mkdir()
    os.chdir(place)
    os.environ["TMPDIR"] = tempfile.tempdir = str(place)
    proof = None
    try:
        proof = import_module(shard.proof)
        total = max(1, round(proof.COUNT * shard.scale))
        connection.send(("total", total))
        failures = _failures(proof, total, shard, connection)
    # A proof may raise signals and exit within itself; none of that may pass for success.
    except BaseException as error:
        failures = [f"shard {shard.number + 1} of {shard.shards}: {_words(error)}"]
    connection.send(("failures", failures))
    sums = connection.recv()
    said = getattr(proof, "figures", None)
    try:
        figures = said(sums) if said is not None and sums is not None else ""
    except Exception as error:
        figures = f"no figures: {_words(error)}"
    connection.send(("figures", figures))


def _failures(proof: Any, total: int, shard: _Shard, connection: Connection) -> list[str]:
    """What the proof found, and whether it did the items it was asked for."""
    first, end = (total * part // shard.shards for part in (shard.number, shard.number + 1))
    items = 0

    def advance(**sums: float) -> None:
        nonlocal items
        items += 1
        connection.send(("item", sums))

    random = Random(f"{shard.seed} {shard.proof} {shard.number}")
    failures = proof.prove(end - first, random, advance) if end > first else []
    if items != end - first:
        failures = [*failures, f"shard {shard.number + 1}: {items} items done of {end - first}"]
    return failures


def _words(error: BaseException) -> str:
    """A traceback's last line, and the place in it that is deepest."""
    said = traceback.format_exception_only(error)[-1].strip()
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return said + where
