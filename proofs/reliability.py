"""docs/reliability.md, and the rows it is made of: what each proof came to, and in which run on which machine."""

import datetime
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from workers import Proof, Result

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
ROWS = PAGE.with_suffix(".json")

INTRODUCTION = """\
# What the program promises, and how it is proved

A run is worth its hours only if it survives what happens to long runs: a process killed, a disk that fills, a bit
that flips, a number that is not one, a config with a slip of the pen. What the program promises about each stands
in the table, and each promise is proved by doing the harm for real, many times, at random but by a seed: real
processes are killed, real files damaged, real hostile artifacts loaded. An item counts only when the answer was
exactly what was promised; a proof that crashes, hangs or skips an item has failed.

`make prove` runs every proof at its full count and writes this page; `make prove ARGS="--promise 3"` renews the rows
of one promise. The proofs are the modules in [proofs](../proofs), and the tests run each of them daily at
a smaller count, and check that it can fail.
"""

EXIT_CODES = """\
## Exit codes

| Code | Meaning |
|---|---|
| 0 | done |
| 1 | a bug of ours |
| 2 | bad input: config, data or arguments |
| 3 | the numbers went bad: a loss, gradient or reward that is not finite |
| 4 | storage: a disk that is full or unwritable, a run that is damaged |
| 69 | a server that was asked does not answer as it should |
| 71 | out of memory, and resumable with smaller passes |
| 75 | stopped by a signal, and resumable |
| 130 | stopped by Ctrl-C, and resumable |
"""

HEADER = """\
| # | Promise | Items | Failed | Figures | Worker seconds | Run |
|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Run:
    """One call of the prover: when, of what code, on what. ``seconds`` are those on the clock."""

    date: str
    code: str
    seed: int
    jobs: int
    seconds: int
    machine: str

    @classmethod
    def here(cls, seed: int, jobs: int, seconds: int) -> "Run":
        return cls(datetime.date.today().isoformat(), _code(), seed, jobs, seconds, machine())

    def line(self) -> str:
        took = f"{self.jobs} workers, {self.seconds:,} s"
        return f"{self.date}, code {self.code}, seed {self.seed}, {took}. {self.machine}"


def write(known: Sequence[Proof], results: Sequence[Result], run: Run) -> None:
    """Put the results into the rows of earlier runs, and draw the page from all of them."""
    rows = json.loads(ROWS.read_text()) if ROWS.exists() else {}
    rows |= {result.proof.name: row(result, run) for result in results}
    rows = {proof.name: rows[proof.name] for proof in known if proof.name in rows}
    ROWS.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    PAGE.write_text(page(known, rows))


def row(result: Result, run: Run) -> dict[str, Any]:
    """What is kept of a result. The failures are counted only: their words may name places of this machine."""
    return {
        "items": result.done,
        "failed": len(result.failures),
        "figures": result.figures,
        "seconds": round(result.seconds),
        "run": asdict(run),
    }


def page(known: Sequence[Proof], rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The Markdown: one row a proof, those without a result as not run, and the runs that the rows came from."""
    runs: list[Run] = []
    lines = []
    for proof in known:
        cells = [str(proof.promise), proof.title]
        if proof.name in rows:
            found = rows[proof.name]
            run = Run(**found["run"])
            runs += [] if run in runs else [run]
            cells += [f"{found['items']:,}", f"{found['failed']:,}", found["figures"]]
            cells += [f"{found['seconds']:,}", str(runs.index(run) + 1)]
        else:
            cells += ["not run", "", "", "", ""]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n")
    numbered = "".join(f"{number}. {run.line()}\n" for number, run in enumerate(runs, 1))
    made = f"## Runs\n\n{numbered}\n" if runs else ""
    return f"{INTRODUCTION}\n{HEADER}{''.join(lines)}\n{made}{EXIT_CODES}"


def machine() -> str:
    """The machine in a sentence, without a name or a path."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    return (
        f"{_processor()}, {cores} cores, {memory:.0f} GiB; {_system()}, temporary files on {_file_system()}; "
        f"Python {platform.python_version()}, {libraries}."
    )


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return f"{platform.system()} {platform.release()}"


def _file_system() -> str:
    """The type of the file system that temporary files lie on."""
    table = Path("/proc/self/mounts")
    place = Path(tempfile.gettempdir()).resolve()
    mounts = [line.split() for line in table.read_text().splitlines()] if table.exists() else []
    # Of two mounted on one place, the later hides the earlier; max keeps the first of equals.
    around = [mount for mount in reversed(mounts) if place.is_relative_to(mount[1])]
    return max(around, key=lambda mount: len(mount[1]))[2] if around else "an unknown file system"


def _code() -> str:
    """The commit, and whether the program or its tests have changed since."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=PAGE.parent.parent, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    commit = git("rev-parse", "--short", "HEAD")
    changed = git("status", "--porcelain", "--", "src", "proofs", "tests")
    return f"{commit or 'unknown'}{' with changes' if changed else ''}"
