"""The comparison on every built-in task, T5- and Llama-shaped: the tables of docs/results.md.

    make table                    three seeds
    make table ARGS=--quick       one seed, the two bases that ship: 4 minutes on 2 cores

Each case is three commands: `cagsr sft` makes its base, `cagsr probe` says what to expect of it, `cagsr compare` does
the rest. Two cases run at a time, one thread each. What is finished is not done again.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.verdicts import matrix, outcomes, rows
from cagsr.evaluation.leaderboard import markdown, overview
from cagsr.io.atomic_write import write_atomically
from cagsr.runs.directory import RunDirectory

CONFIG = "examples/paper.yaml"
PROBE = "probe.json"
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


def page(found: dict[str, Found], arguments: argparse.Namespace) -> str:
    how = "make table" + (" ARGS=--quick" if arguments.quick else "")
    summaries = {name: one.summary for name, one in found.items()}
    told = [line for name, one in found.items() for line in outcomes(name, one.probe, one.summary)]
    parts = [
        "# Results\n",
        f"`{how}`, {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} CPU cores, float32, torch {torch.__version__}. "
        "Greedy answers to held-out prompts; 95 % intervals by a paired bootstrap over prompts and seeds; **bold**: "
        "Holm's corrected p < .05 among all systems of a table. With one seed an interval speaks of these prompts "
        "only, not of another seed. What each system is: `cagsr compare --list`.\n",
        f"\n## Slot errors, all cases\n\n{overview(summaries)}",
        f"\n## What the probe said before, and what training did\n\n{matrix(told)}\n{rows(told)}",
    ]
    for name, summary in summaries.items():
        budget = summary["budget"]
        parts.append(
            f"\n## {name}\n\n{summary['prompts']} prompts, seeds {', '.join(map(str, summary['seeds']))}; each system "
            f"may sample {budget['responses']:,} responses ({budget['steps']} steps).\n\n{markdown(summary)}"
        )
    return "\n".join(parts)


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
    parser.add_argument("--page", type=Path, help="Markdown to write; default: on standard output")
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
    text = page({case.name: one for case, one in zip(chosen, found, strict=True)}, arguments)
    if arguments.page is None:
        print(text)
    else:
        arguments.page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
