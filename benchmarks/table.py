"""The comparison on every built-in task, T5- and Llama-shaped: docs/results.json and the pages that quote it.

    make table                    three seeds; docs/results.json is kept anew and all pages are filled in from it
    make table ARGS=--quick       one seed, the two bases that ship: 4 minutes on 2 cores; printed, nothing is written

Each case is three commands: `cagsr sft` makes its base, `cagsr probe` says what to expect of it, `cagsr compare` does
the rest. Two cases run at a time, one thread each. What is finished is not done again.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.pages import fill_all
from benchmarks.results import VERDICTS, every_case, keep, overview, read_table, verdict_counts
from benchmarks.verdicts import outcomes
from benchmarks.verdicts import rows as outcome_rows
from cagsr.evaluation.leaderboard import markdown
from cagsr.io.atomic_write import write_atomically
from cagsr.runs.directory import RunDirectory

CONFIG = "examples/paper.yaml"
PROBE = "probe.json"
RECORD = Path("docs/results.json")
SFT = ["sft.batch_size=64", "sft.schedule=cosine", "sft.warmup_steps=100"]
RATES = {"t5": "2.0e-3", "llama": "3.0e-3"}
SIZE = ["sft.scratch.layers=3", "sft.scratch.hidden=128", "sft.scratch.heads=4"]


@dataclass(frozen=True)
class Case:
    task: str
    shape: str
    steps: int  # of supervised learning; 0: the base that ships
    rows: int = 8000  # of questions it needs more: of these it would learn the answers by heart
    rate: str | None = (
        None  # of supervised learning; None: the shape's. Questions need a slow start (lab notes)
    )

    @property
    def name(self) -> str:
        return f"{self.task}-{self.shape}"


CASES = [
    Case("slots-paraphrase", "t5", 0),
    Case("slots", "t5", 2500),
    Case("slots", "llama", 0),
    Case("slots-paraphrase", "llama", 2500),
    Case("keywords", "t5", 2500),
    Case("keywords", "llama", 1500),  # not mature, on purpose (lab notes)
    Case("qa", "t5", 6000, rows=50_000, rate="1.0e-3"),
    Case("qa", "llama", 2500, rows=50_000, rate="1.0e-3"),
]


@dataclass(frozen=True)
class Found:
    """What a case came to: what the probe printed, and the comparison's summary."""

    probe: dict[str, Any]
    summary: dict[str, Any]


def commands(case: Case, directory: Path, quick: bool, extra: list[str]) -> list[list[str]]:
    """The commands that this case still needs, in their order."""
    task, base = f"data.task={case.task}", directory / case.name / "base"
    needed = []
    if (base / "run.json").exists() and not (base / "summary.json").exists():
        RunDirectory.move_aside(base)  # stopped before its end
    if case.steps and not (base / "summary.json").exists():
        size = [f"data.count={case.rows}", f"sft.steps={case.steps}", *SIZE]
        shape = [
            f"sft.scratch.architecture={case.shape}",
            f"sft.learning_rate={case.rate or RATES[case.shape]}",
        ]
        given = [task, *size, f"sft.directory={base}", *SFT, *shape]
        needed.append(["sft", "--config", CONFIG, *given])
    model = [f"model.name={base / 'model'}"] * bool(case.steps)
    if not (directory / case.name / PROBE).exists():
        needed.append(["probe", "--config", CONFIG, "--json", task, *model])
    target = directory / case.name / "compare"
    settings = [task, f"compare.directory={target}", *extra, *model]
    place = target.with_name("compare-quick") if quick else target
    flags = ["--quick"] * quick + ["--resume"] * (place / "run.json").exists()
    needed.append(["compare", "--config", CONFIG, *flags, *settings])
    return needed


def run(case: Case, directory: Path, quick: bool, extra: list[str]) -> Found:
    place = directory / case.name
    place.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (place / "log.txt").open("a", encoding="utf-8") as log:
        for arguments in commands(case, directory, quick, extra):
            print(f"{case.name}: cagsr {' '.join(arguments)}", flush=True)
            probes = arguments[0] == "probe"
            done = subprocess.run(
                [sys.executable, "-m", "cagsr", *arguments],
                check=True,
                stdout=subprocess.PIPE if probes else log,
                stderr=log,
                env=environment,
                text=True,
            )
            if probes:
                write_atomically(place / PROBE, done.stdout)
    summary = place / ("compare-quick" if quick else "compare") / "summary.json"
    return Found(*(json.loads(path.read_text(encoding="utf-8")) for path in (place / PROBE, summary)))


def case_part(case: Case, summary: Mapping[str, Any]) -> dict[str, Any]:
    """A comparison as a part of docs/results.json."""
    budget, seeds = summary["budget"], ", ".join(map(str, summary["seeds"]))
    columns, rows = read_table(markdown(summary))
    return {
        **_provenance(),
        "command": f"make table ARGS='--case {case.name}'",
        "about": f"{summary['prompts']} prompts, seeds {seeds}; each system may sample {budget['responses']:,} "
        f"responses ({budget['steps']} steps).",
        "columns": columns,
        "rows": rows,
    }


def verdicts_part(found: Mapping[str, Found]) -> dict[str, Any]:
    """What the probe said of each reward, and what training by it did, as a part of docs/results.json."""
    told = [line for name, one in found.items() for line in outcomes(name, one.probe, one.summary)]
    columns, rows = read_table(outcome_rows(told))
    return {
        **_provenance(),
        "command": "make table",
        "about": "cagsr probe on 100 development prompts of each base, and what training by the same reward then did.",
        "columns": columns,
        "rows": rows,
    }


def _provenance() -> dict[str, str]:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    return {
        "measured": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{os.cpu_count()} CPU cores, float32, {packages}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one seed, the bases that ship")
    parser.add_argument(
        "--case",
        action="append",
        dest="cases",
        choices=[case.name for case in CASES],
        help="only this; again for more",
    )
    parser.add_argument("--directory", type=Path, default=Path("runs/table"))
    parser.add_argument(
        "--record", type=Path, default=RECORD, help=f"results file to merge into; default {RECORD}"
    )
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="overrides of examples/paper.yaml")
    arguments = parser.parse_args()
    chosen = [
        case
        for case in CASES
        if (case.name in arguments.cases if arguments.cases else not (arguments.quick and case.steps))
    ]
    with ThreadPoolExecutor(max_workers=2) as pool:
        found = list(
            pool.map(lambda case: run(case, arguments.directory, arguments.quick, arguments.settings), chosen)
        )
    results = {case.name: one for case, one in zip(chosen, found, strict=True)}
    parts = {case.name: case_part(case, results[case.name].summary) for case in chosen}
    verdicts = verdicts_part(results)
    if arguments.quick:
        record = {**parts, VERDICTS: verdicts}
        print(overview(record), verdict_counts(record), every_case(record), sep="\n\n")
        return
    keep(arguments.record, parts, verdicts, [case.name for case in CASES])
    for page in fill_all(write=True):
        print(page)


if __name__ == "__main__":
    main()
