"""The table on a real assistant: docs/real.json, row by row, and the pages that quote it.

    make table-real                                  every system, task and seed that is not in docs/real.json yet
    make table-real ARGS="--task requests --system lexical --seed 0"
    make table-real ARGS="--task e2e --e2e FILE"     E2E's meanings, from a file with the columns mr and reference
    make table-real ARGS="--system attention-values --variant better --variant examples"
    make table-real ARGS="--measure"                 nothing is trained; what there is, is measured again

SmolLM2-135M-Instruct (`cagsr demo --model instruct` fetches it) is trained by each reward with the settings of
examples/instruct.yaml, and compared with itself untrained on held-out prompts, greedily: as it stands, asked better,
with two worked examples, and by the best of eight samples. A run takes some twenty minutes on a core, so that the table
grows over days: a run that was stopped is resumed, one that is trained is not trained again, and what one found is a
row of its own, with intervals over prompts and its date. Answers are kept beside the runs, and metrics are computed
from them.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks import results
from benchmarks import table_real_answers as keeping
from benchmarks.pages import fill_all
from benchmarks.table_real_prompts import E2E, VARIANTS, WORDINGS, checker_of, messages, prepare_e2e, rows_of
from cagsr.config import Config
from cagsr.errors import CagsrError, InputError
from cagsr.experiments.instruct_model import instruct_model
from cagsr.io.atomic_write import write_atomically
from cagsr.metrics.bootstrap import Interval, difference

CONFIG = "examples/instruct.yaml"
RECORD = Path("docs/real.json")
PROMPTS = 120
TASKS = {"restaurants": [], "requests": ["sampling.max_new_tokens=96"], E2E: []}
"""Tasks for instruct models, and their settings."""
BASE, BEST_OF, BEST_BY_CHECKER = "no-rl", "best-of-8", "best-of-8-oracle"
SYSTEMS = {
    "attention-values": ["reward.preset=attention-values"],
    "attention": ["reward.preset=attention"],
    "knockout": ["reward.preset=knockout", "reward.salience.kind=pieces"],
    "paper": ["reward.preset=paper"],
    "lexical": ["reward.preset=lexical"],
    "token-copy": ["reward.terms=[{signal: token_copy}, {signal: repetition, standardise: none}]"],
    "length": ["reward.preset=length"],
    "self-certainty": ["reward.preset=self-certainty"],
    "reconstruction": ["reward.terms=[{signal: reconstruction}, {signal: repetition, standardise: none}]"],
    "random": ["reward.terms=[{signal: random_reward}]"],
    "oracle": ["reward.preset=oracle"],
}
"""Rewards to train by; the controls read no attention."""
METRICS = {
    "slot_error_rate": "slot errors",
    "coverage": "said",
    "hallucination": "invented",
    "wrong_values": "wrong values",
    "foreign_names": "foreign names",
    "repetition": "said twice",
    "relevance": "relevance",
    "rouge_l": "ROUGE-L",
}
SAME = f"slot errors to {BASE}, asked alike"
COLUMNS = [
    "system",
    "seed",
    "asked",
    *(name for metric in METRICS.values() for name in (metric, f"{metric} to {BASE}")),
    SAME,
    "tokens",
    "minutes",
    "measured",
]
KEY = 3
"""Columns that tell a row from others: what stood in its place before is replaced."""

Values = Mapping[str, np.ndarray]


@dataclass
class Table:
    """What the rows of a task are made from: its prompts, and where runs and answers lie.

    ``directory`` has a place for every system and seed, with a trained run and ``answers-VARIANT.json`` in it.
    """

    task: str
    directory: Path
    model: str
    console: Console = field(default_factory=Console)

    @property
    def prepared(self) -> Path:
        """E2E's prompts, for training and for measuring."""
        return self.directory / self.task / "prompts.jsonl"

    @property
    def settings(self) -> list[str]:
        """Overrides of CONFIG that make it the task's."""
        if self.task == E2E:
            given = [f"data.source={self.prepared}", "data.holdout_column=mr", "data.checker=e2e"]
        else:
            given = [
                f"data.task={self.task}",
                "data.source=null",
                "data.holdout_column=null",
                "data.count=400",
            ]
        return [*given, *TASKS[self.task]]

    def rows(self) -> list[dict[str, Any]]:
        """The held-out rows, which no run has seen."""
        return rows_of(self.task, "heldout", PROMPTS, self.prepared)

    def place(self, system: str, seed: int) -> Path:
        name = system if system == BASE else f"{system}-{seed}"
        return self.directory / self.task / name

    def is_trained(self, system: str, seed: int) -> bool:
        return system not in SYSTEMS or (self.place(system, seed) / "summary.json").exists()

    def train(self, system: str, seed: int) -> None:
        """Train, or go on training, by a system's reward."""
        place = self.place(system, seed)
        given = [
            f"model.name={self.model}",
            *self.settings,
            "data.evaluation_count=16",  # of the run's own curve; the table has prompts of its own
            *SYSTEMS[system],
            f"train.seed={seed}",
            f"run.directory={place}",
        ]
        resume = ["--resume"] if (place / "run.json").exists() else []
        _cagsr("train", "--config", CONFIG, *resume, *given)

    def minutes(self, system: str, seed: int) -> float | None:
        """What the steps of a run took; None where nothing was trained."""
        if system not in SYSTEMS:
            return None
        lines = (self.place(system, seed) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return sum(json.loads(line).get("seconds", 0.0) for line in lines) / 60

    def kept_at(self, system: str, seed: int, variant: str) -> Path:
        return self.place(system, seed) / f"answers-{variant}.json"

    def answers(self, system: str, seed: int, variant: str) -> keeping.Kept:
        """The answers of a system to the held-out prompts, asked in one way: those that are kept, or new ones."""
        asked = [messages(self.task, row, variant) for row in self.rows()]
        path = self.kept_at(system, seed, variant)
        config = Config.load(CONFIG, [*self.settings, f"model.name={self.model}", "reward.preset=robust"])
        kept = keeping.kept_answers(path, asked, config.sampling.max_new_tokens)
        if kept is not None:
            return kept
        self.console.print(f"{self.task}: {system}, seed {seed}, answers {len(asked)} prompts ({variant})")
        if system == BEST_OF:
            return keeping.sample_candidates(path, config, self.model, asked, seed, self.console)
        model = self.model if system == BASE else str(self.place(system, seed) / "model")
        return keeping.answer_greedily(path, config, model, asked)

    def values(self, system: str, seed: int, variant: str) -> dict[str, np.ndarray]:
        """Metric -> [P] of a system."""
        rows, checker, by_checker = self.rows(), checker_of(self.task), system == BEST_BY_CHECKER
        written_by = BEST_OF if by_checker else system
        kept = self.answers(written_by, seed, variant)
        kept = keeping.with_relevance(self.kept_at(written_by, seed, variant), kept, rows)
        chosen = keeping.by_checker(kept, rows, checker) if by_checker else kept.get("chosen")
        return keeping.values_of(kept, rows, checker, chosen)

    def row(self, system: str, seed: int, variant: str) -> list[str]:
        """A line of the table: means, and differences from the base as it stands, with 95 % intervals over prompts."""
        values, base = self.values(system, seed, variant), self.values(BASE, 0, "plain")
        is_base = system == BASE and variant == "plain"
        cells = [
            cell
            for metric in METRICS
            for cell in (_mean(values, metric), "" if is_base else _moved(values, base, metric))
        ]
        alike = ""
        if system != BASE and variant != "plain":
            alike = _moved(values, self.values(BASE, 0, variant), "slot_error_rate")
        minutes = self.minutes(system, seed)
        return [
            system,
            "" if system == BASE else str(seed),
            variant,
            *cells,
            alike,
            f"{values['length'].mean():.0f}",
            "" if minutes is None else f"{minutes:.0f}",
            _today(),
        ]


def add(record: results.Record, task: str, rows: list[list[str]]) -> results.Record:
    """The record with these rows in a task's part, in the order of the systems; a row of the same cell is replaced.

    Rows with other columns, of an older table, are left out: their runs are measured again.
    """
    order = [BASE, BEST_OF, BEST_BY_CHECKER, *SYSTEMS]
    kept = {tuple(one[:KEY]): one for one in [*_rows(record, task), *rows]}
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    part = {
        "measured": _today(),
        "machine": f"{os.cpu_count()} CPU cores, float32, {packages}",
        "command": f"make table-real ARGS='--task {task}{' --e2e FILE' * (task == E2E)}'",
        "about": f"SmolLM2-135M-Instruct, a rounded (Q4_1) copy, LoRA, 40 steps of 4 prompts x 6 candidates; {PROMPTS} "
        "held-out prompts, greedy.",
        "columns": COLUMNS,
        "rows": sorted(kept.values(), key=lambda one: (order.index(one[0]), one[1], VARIANTS.index(one[2]))),
    }
    return {**record, task: part}


def cells(
    systems: Sequence[str] | None, seeds: Sequence[int], variants: Sequence[str] | None
) -> Iterator[tuple[int, str, str]]:
    """Seed, system and variant of every row that is asked for, what needs no training first.

    Where no variant is named, the base is asked in each wording, and every other system in the plain one.
    """
    named = systems or [BASE, BEST_OF, *SYSTEMS]
    if BASE in named:
        yield from ((0, BASE, variant) for variant in variants or WORDINGS)
    for seed, system in product(seeds, [name for name in named if name != BASE]):
        yield from ((seed, system, variant) for variant in variants or WORDINGS[:1])


def fill(table: Table, path: Path, asked: Iterator[tuple[int, str, str]], measure: bool) -> None:
    """Train and measure what the record lacks; with ``measure`` nothing is trained, and all that is, measured again."""
    for seed, system, variant in asked:
        record = results.read(path)
        key = [system, "" if system == BASE else str(seed), variant]
        known = any(one[:KEY] == key for one in _rows(record, table.task))
        if (known and not measure) or (measure and not table.is_trained(system, seed)):
            continue
        if not table.is_trained(system, seed):
            table.train(system, seed)
        rows = [table.row(system, seed, variant)]
        if system == BEST_OF:
            rows.append(table.row(BEST_BY_CHECKER, seed, variant))
        base = [] if system == BASE else [table.row(BASE, 0, "plain")]
        write_atomically(path, results.as_text(add(record, table.task, base + rows)))


def _rows(record: results.Record, task: str) -> list[list[str]]:
    part = record.get(task, {})
    return part["rows"] if part.get("columns") == COLUMNS else []


def _cagsr(*arguments: str) -> str:
    print("cagsr", *arguments, flush=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "cagsr", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, text=True)
    if done.returncode:
        sys.exit(done.returncode)  # it has said why
    return done.stdout


def _mean(values: Values, metric: str) -> str:
    return _short(f"{values[metric].mean():.3f}") if metric in values else ""


def _moved(values: Values, base: Values, metric: str) -> str:
    return _interval(difference(values[metric], base[metric])) if metric in values and metric in base else ""


def _interval(found: Interval) -> str:
    mean, low, high = (_short(f"{end:+z.3f}") for end in (found.mean, found.low, found.high))
    text = f"{mean} [{low}, {high}]"
    return f"**{text}**" if found.low > 0 or found.high < 0 else text


def _short(number: str) -> str:
    return number.replace("0.", ".", 1) if number.lstrip("+-").startswith("0.") else number


def _today() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=list(TASKS), help="only this; again for more", action="append")
    systems = [BASE, BEST_OF, *SYSTEMS]
    parser.add_argument("--system", choices=systems, help="only this; again for more", action="append")
    parser.add_argument(
        "--seed", type=int, help="only this; again for more; default 0 and 1", action="append"
    )
    asked = "asked so; again for more; default: plain, and the base in every wording"
    parser.add_argument("--variant", choices=VARIANTS, help=asked, action="append")
    parser.add_argument("--e2e", type=Path, metavar="FILE", help="rows of E2E with mr and reference")
    again = "train nothing; measure again what is trained"
    parser.add_argument("--measure", action="store_true", help=again)
    parser.add_argument("--directory", type=Path, default=Path("runs/real"))
    parser.add_argument("--record", type=Path, default=RECORD, help=f"default {RECORD}")
    return parser.parse_args()


def run(chosen: argparse.Namespace) -> None:
    """Fill the record for what is chosen. Raises InputError for E2E without its file, and a layout of other tasks."""
    tasks = chosen.task or [name for name in TASKS if name != E2E or chosen.e2e]
    console = Console()
    model = instruct_model(console)
    for task in tasks:
        if task != E2E and set(chosen.variant or ()) - set(WORDINGS):
            raise InputError(f"--variant: the task {task} is asked as {', '.join(WORDINGS)} only")
        table = Table(task, chosen.directory, model, console)
        if task == E2E and chosen.e2e:
            prepare_e2e(chosen.e2e, table.prepared)
        elif task == E2E and not table.prepared.exists():
            raise InputError("--task e2e needs E2E's rows: --e2e FILE, with the columns mr and reference")
        asked = cells(chosen.system, chosen.seed or (0, 1), chosen.variant)
        fill(table, chosen.record, asked, chosen.measure)


def main() -> None:
    chosen = arguments()
    try:
        run(chosen)
    except CagsrError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    if chosen.record == RECORD:
        for page in fill_all(write=True):
            print(page)


if __name__ == "__main__":
    main()
