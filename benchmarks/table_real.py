"""The table on a real assistant: docs/real.json, run by run, and the pages that quote it.

    make table-real                                  every system, task and seed that is not in docs/real.json yet
    make table-real ARGS="--task requests --system lexical --seed 0"

SmolLM2-135M-Instruct (`cagsr demo --model instruct` fetches it) is trained by each reward with the settings of
examples/instruct.yaml, and compared with itself untrained on held-out prompts, greedily. A run takes some twenty
minutes on a core, so that the table grows over days: a run that was stopped is resumed, one that is in the record is
not made again, and what one found is a row of its own, with its interval over prompts and its date.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import results
from benchmarks.pages import fill_all
from cagsr.experiments.instruct_model import instruct_model
from cagsr.io.atomic_write import write_atomically

CONFIG = "examples/instruct.yaml"
RECORD = Path("docs/real.json")
PROMPTS = 120
TASKS = {"restaurants": [], "requests": ["sampling.max_new_tokens=96"]}
"""Generated tasks for instruct models, and their settings."""
BASE = "no-rl"
SYSTEMS = {
    "attention-values": ["reward.preset=attention-values"],
    "attention": ["reward.preset=attention"],
    "knockout": ["reward.preset=knockout", "reward.salience.kind=pieces"],
    "paper": ["reward.preset=paper"],
    "lexical": ["reward.preset=lexical"],
    "token-copy": ["reward.terms=[{signal: token_copy}, {signal: repetition, standardise: none}]"],
    "length": ["reward.preset=length"],
    "self-certainty": ["reward.preset=self-certainty"],
    "random": ["reward.terms=[{signal: random_reward}]"],
    "oracle": ["reward.preset=oracle"],
}
"""Rewards to train by; the controls read no attention."""
METRICS = {
    "slot_error_rate": "slot errors",
    "coverage": "said",
    "hallucination": "invented",
    "repetition": "said twice",
}
COLUMNS = [
    "system",
    "seed",
    *(name for metric in METRICS.values() for name in (metric, f"{metric} to {BASE}")),
    "tokens",
    "minutes",
    "measured",
]


def train(task: str, system: str, seed: int, model: str, place: Path) -> float:
    """Train, or go on training, by a system's reward; returns the minutes that its steps took."""
    begun = (place / "run.json").exists()
    given = [
        f"model.name={model}",
        f"data.task={task}",
        "data.source=null",
        "data.holdout_column=null",
        "data.count=400",
        "data.evaluation_count=16",  # of the run's own curve; the table has prompts of its own
        *TASKS[task],
        *SYSTEMS[system],
        f"train.seed={seed}",
        f"run.directory={place}",
    ]
    _cagsr("train", "--config", CONFIG, *["--resume"] * begun, *given)
    lines = (place / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return sum(json.loads(line).get("seconds", 0.0) for line in lines) / 60


def measure(task: str, model: str, trained: Path) -> dict[str, Any]:
    """What `cagsr eval` prints of the base and the trained model, on prompts that no run has seen."""
    given = [
        f"data.task={task}",
        "data.source=null",
        "data.holdout_column=null",
        f"data.evaluation_count={PROMPTS}",
        *TASKS[task],
        "reward.preset=length",  # nothing to be asked for: the checker counts
    ]
    systems = [f"{BASE}={model}", f"trained={trained}"]
    return json.loads(_cagsr("eval", "--config", CONFIG, "--json", *systems, *given))


def row(system: str, seed: int, found: Mapping[str, Any], minutes: float) -> list[str]:
    """A line of the table: a run's means, their differences from the base and the 95 % intervals over prompts."""
    means, difference = found["systems"]["trained"], found["differences"][f"trained-{BASE}"]
    cells = [
        cell for metric in METRICS for cell in (_mean(means[metric]["mean"]), _interval(difference[metric]))
    ]
    return [system, str(seed), *cells, f"{means['length']['mean']:.0f}", f"{minutes:.0f}", _today()]


def base_row(found: Mapping[str, Any]) -> list[str]:
    """The line of the untrained model."""
    means = found["systems"][BASE]
    cells = [cell for metric in METRICS for cell in (_mean(means[metric]["mean"]), "")]
    return [BASE, "", *cells, f"{means['length']['mean']:.0f}", "", _today()]


def add(record: results.Record, task: str, rows: list[list[str]]) -> results.Record:
    """The record with these rows in a task's part, in the order of `SYSTEMS`; a row of the same run is replaced."""
    order = [BASE, *SYSTEMS]
    kept = {(one[0], one[1]): one for one in [*record.get(task, {"rows": []})["rows"], *rows]}
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    part = {
        "measured": _today(),
        "machine": f"{os.cpu_count()} CPU cores, float32, {packages}",
        "command": f"make table-real ARGS='--task {task}'",
        "about": f"SmolLM2-135M-Instruct, a rounded (Q4_1) copy, LoRA, 40 steps of 4 prompts x 6 candidates; {PROMPTS} "
        "held-out prompts, greedy.",
        "columns": COLUMNS,
        "rows": sorted(kept.values(), key=lambda one: (order.index(one[0]), one[1])),
    }
    return {**record, task: part}


def _cagsr(*arguments: str) -> str:
    print("cagsr", *arguments, flush=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "cagsr", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, text=True)
    if done.returncode:
        sys.exit(done.returncode)  # it has said why
    return done.stdout


def _mean(value: float) -> str:
    return f"{value:.3f}".replace("0.", ".", 1)


def _interval(found: Mapping[str, float]) -> str:
    mean, low, high = (f"{found[end]:+.3f}".replace("0.", ".", 1) for end in ("mean", "low", "high"))
    text = f"{mean} [{low}, {high}]"
    return f"**{text}**" if found["low"] > 0 or found["high"] < 0 else text


def _today() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", action="append", choices=list(TASKS), help="only this; again for more")
    parser.add_argument("--system", action="append", choices=list(SYSTEMS), help="only this; again for more")
    parser.add_argument(
        "--seed", action="append", type=int, help="only this; again for more; default 0 and 1"
    )
    parser.add_argument("--directory", type=Path, default=Path("runs/real"))
    parser.add_argument("--record", type=Path, default=RECORD, help=f"default {RECORD}")
    chosen = parser.parse_args()
    model = instruct_model(Console())
    for task, seed, system in product(chosen.task or TASKS, chosen.seed or (0, 1), chosen.system or SYSTEMS):
        record = results.read(chosen.record)
        if any(one[:2] == [system, str(seed)] for one in record.get(task, {"rows": []})["rows"]):
            continue
        place = chosen.directory / task / f"{system}-{seed}"
        minutes = train(task, system, seed, model, place)
        found = measure(task, model, place / "model")
        grown = add(record, task, [base_row(found), row(system, seed, found, minutes)])
        write_atomically(chosen.record, results.as_text(grown))
    if chosen.record == RECORD:
        for page in fill_all(write=True):
            print(page)


if __name__ == "__main__":
    main()
