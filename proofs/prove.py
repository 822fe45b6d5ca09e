"""Runs the proofs of what the program promises, and writes docs/reliability.md.

    python proofs/prove.py                        every proof at its full count
    python proofs/prove.py --scale 0.05           a twentieth of each
    python proofs/prove.py --promise 3 --write    one promise, and its rows of the page

A proof is a module beside this one, named in PROOFS:

    TITLE = "a corrupt checkpoint is detected"
    PROMISE = 2       # several modules may share one
    COUNT = 1000      # items of the full proof; may be computed, all else is read as a literal
    SHARDS = False    # optional: the items are a list that `count` picks from, so it cannot be cut into parts
    ALONE = True      # optional: it measures time; nothing runs beside it
    LIMIT = 900       # optional: seconds one item may take (600)

    def prove(count: int, random: Random, advance: Callable[..., None]) -> list[str]:
        # The failures, in words. Once an item: advance(), or with numbers that are summed by name over all items
        # and shards: advance(inside_a_save=1).

    def figures(sums: Counter[str]) -> str:      # optional: what the sums say, for the table
        return f"{sums['inside_a_save']} inside a save"

It is called in an empty temporary directory. Exit code 1 if anything failed.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

import reliability
from workers import Proof, Result, run

PROOFS = (
    "kills",
    "corruptions",
    "disk_full",
    "stopped",
    "slow_stops",
    "non_finite",
    "dirty_directories",
    "resumed_identity",
    "fuzzed_input",
    "suggestions",
    "architectures",
    "safety",
    "inert_report",
    "closed_page",
    "ratings_kept",
    "secrets_and_paths",
    "sealing",
    "saved_models",
    "agreement",
    "conversations",
    "known_rows",
    "failing_dashboards",
)
"""In the order of their promises."""

SHOWN = 20
"""Failures of one proof that are printed."""

SECONDS_BETWEEN_LINES = 30


class Show:
    """One bar a proof in a terminal; in a log a line now and then, and one whenever a proof is through."""

    def __init__(self, console: Console, proofs: Sequence[Proof]) -> None:
        self.console = console
        self.moving = console.is_terminal and not os.environ.get("CI")
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.completed}/{task.fields[whole]}"),
            TextColumn("{task.fields[failed]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not self.moving,
        )
        self.tasks: dict[str, TaskID] = {
            proof.name: self.bars.add_task(
                f"{proof.promise:>2} {proof.title}", start=False, total=None, whole="?", failed=""
            )
            for proof in proofs
        }
        self.latest: dict[str, Result] = {}
        self.started = self.printed = time.monotonic()

    def __call__(self, result: Result) -> None:
        if self.moving:
            self._move(result)
        else:
            self._print(result)

    def _move(self, result: Result) -> None:
        task, failed = self.tasks[result.proof.name], len(result.failures)
        self.bars.start_task(task)
        self.bars.update(
            task,
            completed=result.done,
            total=result.total,
            whole=result.total or "?",
            failed=f"[red]{failed} failed[/]" if failed else "",
        )
        if not result.open_shards:
            self.bars.stop_task(task)

    def _print(self, result: Result) -> None:
        now = time.monotonic()
        self.latest[result.proof.name] = result
        if result.open_shards and now - self.printed < SECONDS_BETWEEN_LINES:
            return
        self.printed = now
        states = [
            f"{name} {each.done} of {each.total or '?'}, {len(each.failures)} failed"
            for name, each in self.latest.items()
        ]
        print(f"{now - self.started:5.0f} s  {'; '.join(states)}", flush=True)
        if not result.open_shards:
            del self.latest[result.proof.name]


def table(results: Sequence[Result]) -> Table:
    drawn = Table(title="What was proved", title_justify="left")
    for header in ("#", "promise", "items", "failed", "figures", "seconds"):
        right = header in ("#", "items", "failed", "seconds")
        drawn.add_column(header, justify="right" if right else "left")
    for result in results:
        failed = len(result.failures)
        drawn.add_row(
            str(result.proof.promise),
            result.proof.title,
            f"{result.done:,}",
            f"[red]{failed:,}[/]" if failed else "0",
            result.figures,
            f"{result.seconds:,.0f}",
        )
    return drawn


def failure_lines(results: Sequence[Result]) -> list[str]:
    lines = []
    for result in results:
        lines += [f"{result.proof.name}: {failure}" for failure in result.failures[:SHOWN]]
        rest = len(result.failures) - SHOWN
        lines += [f"{result.proof.name}: and {rest} more"] if rest > 0 else []
    return lines


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Prove what the program promises.")
    parser.add_argument(
        "--promise", type=int, action="append", metavar="N", help="only this; may be given again"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="part of each count, above 0 and at most 1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (2)")
    parser.add_argument("--write", action="store_true", help=f"write {reliability.PAGE.name} and its rows")
    given = parser.parse_args(arguments)
    if not 0 < given.scale <= 1:
        parser.error(f"--scale {given.scale}: must be above 0 and at most 1")
    if given.write and given.scale != 1:
        parser.error("--write needs the full counts; leave --scale out")
    if given.jobs < 1:
        parser.error(f"--jobs {given.jobs}: at least 1")
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    given = _arguments(arguments)
    known = [Proof.of(name) for name in PROOFS]
    proofs = [proof for proof in known if given.promise is None or proof.promise in given.promise]
    if missing := {*(given.promise or ())} - {proof.promise for proof in proofs}:
        print(f"no proof of promise {', '.join(map(str, sorted(missing)))}", file=sys.stderr)
        return 2
    console = Console()
    started = time.monotonic()
    show = Show(console, proofs)
    with show.bars:
        results = run(proofs, given.scale, given.seed, given.jobs, show)
    console.print(table(results))
    for line in failure_lines(results):
        console.print(line, style="red", markup=False, highlight=False, soft_wrap=True)
    if given.write:
        made = reliability.Run.here(given.seed, given.jobs, round(time.monotonic() - started))
        reliability.write(known, results, made)
        console.print(
            f"written: {reliability.PAGE}, {reliability.ROWS.name}", highlight=False, soft_wrap=True
        )
    return int(any(result.failures for result in results))


def _settle() -> None:
    """What every worker and all that it starts must find, wherever it works."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if path := os.environ.get("PYTHONPATH"):
        os.environ["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, path.split(os.pathsep)))
    # As Ctrl-C does: the workers lead sessions of their own, and would outlive this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, TextIOWrapper)
        stream.reconfigure(errors="backslashreplace")  # a failure may quote lone surrogates


if __name__ == "__main__":
    _settle()
    try:
        code = main()
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)
