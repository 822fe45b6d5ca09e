"""Rows of the table on a real assistant: what a system is, trains and answers with, and what a row says of it."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks import results
from benchmarks import table_real_answers as keeping
from benchmarks import table_real_text as text
from benchmarks.table_real_prompts import E2E, VARIANTS, checker_of, messages, rows_of
from cagsr.config import Config
from cagsr.config.schema import Term
from cagsr.errors import InputError
from cagsr.metrics.bootstrap import Interval, difference
from cagsr.rewards.presets import load_preset

CONFIG = "examples/instruct.yaml"
PROMPTS = 120
TASKS = {"restaurants": [], "requests": ["sampling.max_new_tokens=96"], E2E: ["train.steps=60"]}
"""Tasks for instruct models, and their settings beside those of CONFIG."""
BASE, BEST_OF, BEST_BY_CHECKER = "no-rl", "best-of-8", "best-of-8-oracle"


def _own(*terms: Term) -> list[str]:
    """Settings of a reward of these terms, which reads learnt heads and pieces as the preset attention does."""
    return ["reward.heads=learn", *_of_pieces(*terms)]


def _of_pieces(*terms: Term) -> list[str]:
    """Settings of a reward of these terms over the pieces that the preset attention reads."""
    listed = json.dumps([term.model_dump() for term in terms])
    return ["reward.salience.kind=pieces", f"reward.terms={listed}"]


def _copied(preset: str) -> list[str]:
    """Settings of a reward that pays for words copied and charges what a preset of attention charges."""
    prices = [term for term in load_preset(preset) if term.signal not in ("attended", "swapped")]
    return _of_pieces(Term("lexical_overlap", standardise="group"), *prices)


SYSTEMS = {
    "attention-values": ["reward.preset=attention-values"],
    "one-value": _own(*load_preset("attention"), Term("swapped", weight=0.5)),
    "values-brief": ["reward.preset=values-brief"],
    "attention-brief": ["reward.preset=attention-brief"],
    "attention": ["reward.preset=attention"],
    "knockout": ["reward.preset=knockout", "reward.salience.kind=pieces"],
    "paper": ["reward.preset=paper"],
    "lexical": ["reward.preset=lexical"],
    "lexical-priced": _copied("attention"),
    "lexical-brief": _copied("values-brief"),
    "token-copy": ["reward.terms=[{signal: token_copy}, {signal: repetition, standardise: none}]"],
    "length": ["reward.preset=length"],
    "self-certainty": ["reward.preset=self-certainty"],
    "reconstruction": ["reward.terms=[{signal: reconstruction}, {signal: repetition, standardise: none}]"],
    "random": ["reward.terms=[{signal: random_reward}]"],
    "oracle": ["reward.preset=oracle"],
}
"""Rewards to train by. one-value is what the preset attention-values was until 2026-12-01: one value asked for at a
step, with half the weight. The controls read no attention; lexical-priced and lexical-brief
pay for words copied and charge what attention and values-brief charge."""
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
FORGOTTEN = f"perplexity elsewhere to {BASE}, %"
COLUMNS = [
    "system",
    "seed",
    "asked",
    *(name for metric in METRICS.values() for name in (metric, f"{metric} to {BASE}")),
    SAME,
    "perplexity elsewhere",
    FORGOTTEN,
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

    ``directory`` has a place for every system and seed, with a trained run and ``answers-VARIANT.json`` in it, and
    ``elsewhere.json``, how well the model tells the ``pieces`` of a text that no run is about; None: no text is given,
    and what is kept is shown.
    """

    task: str
    directory: Path
    model: str
    pieces: list[str] | None = None
    console: Console = field(default_factory=Console)
    known: dict[tuple[str, int, str], dict[str, np.ndarray]] = field(default_factory=dict)

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

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The held-out rows, which no run has seen. Raises InputError where E2E's file gives fewer than PROMPTS."""
        found = rows_of(self.task, "heldout", PROMPTS, self.prepared)
        if len(found) < PROMPTS:
            raise InputError(
                f"{self.prepared}: {len(found)} held-out meanings, and the table asks {PROMPTS}; remove it, and give "
                "--e2e a file with more"
            )
        return found

    def place(self, system: str, seed: int) -> Path:
        name = system if system == BASE else f"{system}-{seed}"
        return self.directory / self.task / name

    def model_of(self, system: str, seed: int) -> str:
        return self.model if system == BASE else str(self.place(system, seed) / "model")

    @property
    def config(self) -> Config:
        """What models answer with, and the reward that chooses among several answers of the base."""
        return Config.load(CONFIG, [*self.settings, f"model.name={self.model}", "reward.preset=robust"])

    def is_trained(self, system: str, seed: int) -> bool:
        """Whether a run is finished, or there is nothing to train. One that was stopped has a summary that says so."""
        summary = self.place(system, seed) / "summary.json"
        if system not in SYSTEMS:
            return True
        return summary.exists() and "stopped" not in json.loads(summary.read_text(encoding="utf-8"))

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
        asked = [messages(self.task, row, variant) for row in self.rows]
        path = self.kept_at(system, seed, variant)
        config = self.config
        kept = keeping.kept_answers(path, asked, config.sampling.max_new_tokens)
        if kept is not None:
            return kept
        self.console.print(f"{self.task}: {system}, seed {seed}, answers {len(asked)} prompts ({variant})")
        if system == BEST_OF:
            return keeping.sample_candidates(path, config, self.model, asked, seed, self.console)
        return keeping.answer_greedily(path, config, self.model_of(system, seed), asked)

    def values(self, system: str, seed: int, variant: str) -> dict[str, np.ndarray]:
        """Metric -> [P] of a system, computed once."""
        cell = (system, seed, variant)
        if cell not in self.known:
            self.known[cell] = self._values(*cell)
        return self.known[cell]

    def _values(self, system: str, seed: int, variant: str) -> dict[str, np.ndarray]:
        rows, checker, by_checker = self.rows, checker_of(self.task), system == BEST_BY_CHECKER
        written_by = BEST_OF if by_checker else system
        kept = self.answers(written_by, seed, variant)
        kept = keeping.with_relevance(self.kept_at(written_by, seed, variant), kept, rows)
        chosen = keeping.by_checker(kept, rows, checker) if by_checker else kept.get("chosen")
        return keeping.values_of(kept, rows, checker, chosen)

    def elsewhere_at(self, system: str, seed: int) -> Path:
        return self.place(system, seed) / "elsewhere.json"

    def elsewhere(self, system: str, seed: int) -> np.ndarray | None:
        """[pieces] nats a token of the text that no run is about; None where it was never read."""
        path = self.elsewhere_at(system, seed)
        if self.pieces is None or system in (BEST_OF, BEST_BY_CHECKER):  # which are the base
            return text.kept_nats(path)
        return text.nats(path, self.config, self.model_of(system, seed), self.pieces)

    def forgotten(self, system: str, seed: int, variant: str) -> list[str]:
        """Perplexity elsewhere, and by how many per cent it is more than the base's.

        Blank where it was not read, or of another text than the base's.
        """
        after, before = self.elsewhere(system, seed), self.elsewhere(BASE, 0)
        if after is None or variant != "plain":
            return ["", ""]
        perplexity = f"{np.exp(after.mean()):.1f}"
        if system == BASE or before is None:
            return [perplexity, ""]
        if not text.same_pieces(self.elsewhere_at(system, seed), self.elsewhere_at(BASE, 0)):
            return ["", ""]
        mean, low, high = (100 * part for part in text.change(after, before))
        changed = f"{mean:+z.1f} [{low:+z.1f}, {high:+z.1f}]"
        return [perplexity, f"**{changed}**" if low > 0 or high < 0 else changed]

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
            *self.forgotten(system, seed, variant),
            f"{values['length'].mean():.0f}",
            "" if minutes is None else f"{minutes:.0f}",
            _today(),
        ]


def add(record: results.Record, task: str, rows: list[list[str]]) -> results.Record:
    """The record with these rows in a task's part, in the order of the systems; a row of the same cell is replaced.

    Rows with other columns, of an older table, are left out: their runs are measured again.
    """
    order = [BASE, BEST_OF, BEST_BY_CHECKER, *SYSTEMS]
    kept = {tuple(one[:KEY]): one for one in [*rows_in(record, task), *rows]}
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    run = Config.load(CONFIG, ["data.holdout_column=null", *TASKS[task]])
    steps = f"{run.train.steps} steps of {run.train.prompts_per_step} prompts x {run.sampling.candidates} candidates"
    part = {
        "measured": _today(),
        "machine": f"{os.cpu_count()} CPU cores, float32, {packages}",
        "command": f"make table-real ARGS='--task {task}{' --e2e FILE' * (task == E2E)}'",
        "about": f"SmolLM2-135M-Instruct, a rounded (Q4_1) copy, LoRA, {steps}; {PROMPTS} held-out prompts, "
        "greedy.",
        "columns": COLUMNS,
        "rows": sorted(kept.values(), key=lambda one: (order.index(one[0]), one[1], VARIANTS.index(one[2]))),
    }
    return {**record, task: part}


def rows_in(record: results.Record, task: str) -> list[list[str]]:
    """The rows of a task that a record has, in the columns of today."""
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
