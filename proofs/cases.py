"""The runs that the proofs break: small, but with everything that a continuation could lose.

Several epochs and minibatches a rollout, an evaluation that chooses best/, a schedule of the learning rate, a KL
controller; both architectures, with and without an adapter, a generated task and a file; supervised training too.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import runs
from runs import start  # the tests of the proofs plant faults in what others find as runs.start

SIZE = (
    "data.evaluation_count=3",
    "train.steps=4",
    "train.prompts_per_step=4",
    "train.micro_batch=6",
    "train.learning_rate=0.01",
    "train.schedule=cosine",
    "train.save_every=1",
    "train.evaluate_every=2",
    "sampling.candidates=3",
    "sampling.max_new_tokens=5",
    "algorithm.epochs=2",
    "algorithm.minibatches=2",
    "algorithm.kl_target=0.5",
    "reward.preset=coverage",
    "run.directory=run",
)
SUPERVISED = (
    "data.evaluation_count=3",
    "sft.steps=9",
    "sft.batch_size=4",
    "sft.save_every=2",
    "sft.max_reference_tokens=20",
    "sft.directory=run",
    "sampling.max_new_tokens=7",
)
TASK = ("data.task=slots", "data.count=11")
FILE = ("data.source=rows.jsonl", "data.holdout_column=prompt")


@dataclass(frozen=True)
class Case:
    """A command and what it is told; ``steps`` are those that it takes."""

    command: str
    settings: tuple[str, ...]
    steps: int = 4

    def arguments(self, resume: bool, more: tuple[str, ...] = ()) -> list[str]:
        return [self.command, *self.settings, *more, *(["--resume"] if resume else [])]


CASES: dict[str, Case] = {
    "GRPO, T5": Case("train", ("model.name=t5", "algorithm.name=grpo", *TASK, *SIZE)),
    "GRPO, Llama, file": Case("train", ("model.name=llama", "algorithm.name=grpo", *FILE, *SIZE)),
    "PPO, T5, file": Case("train", ("model.name=t5", "algorithm.name=ppo", *FILE, *SIZE)),
    "PPO, Llama": Case("train", ("model.name=llama", "algorithm.name=ppo", *TASK, *SIZE)),
    "GRPO, T5, LoRA": Case("train", ("model.name=t5", "model.lora.r=2", *TASK, *SIZE)),
    "PPO, Llama, LoRA": Case(
        "train", ("model.name=llama", "model.lora.r=2", "algorithm.name=ppo", *TASK, *SIZE)
    ),
    "SFT, T5": Case("sft", ("model.name=t5", *TASK, *SUPERVISED), steps=9),
    "SFT, Llama, file": Case("sft", ("model.name=llama", *FILE, *SUPERVISED), steps=9),
}
PLACES = {"adapter_config.json": ("base_model_name_or_path",), "base.json": ("name", "beside")}
TIMED = {"seconds", "tokens_per_second", "memory"}


@dataclass
class Workshop:
    """A directory with the models and the data, and what each case comes to when nothing happens to it."""

    place: Path

    # Of all workshops of a process: what a case comes to depends on no directory.
    endings: ClassVar[dict[str, Mapping[str, object]]] = {}
    took: ClassVar[dict[str, float]] = {}

    @classmethod
    def open(cls) -> "Workshop":
        place = runs.models(Path.cwd() / "workshop")
        rows = [
            {"prompt": f"artist : {a} ; city : {c}", "reference": f"{a} plays in {c} ."}
            for a in ("alba", "bora", "cleo", "dario")
            for c in ("lyon", "porto", "turin", "ghent")
        ]
        (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return cls(place)

    def fresh(self, number: int) -> Path:
        """A directory to run in, with the models and the data under the names that the cases use."""
        directory = self.place / f"at-{number}"
        directory.mkdir()
        for name in ("t5", "llama", "rows.jsonl"):
            (directory / name).symlink_to(self.place / name)
        return directory

    def expected(self, name: str) -> Mapping[str, object]:
        """What the case comes to when it is left alone."""
        if name not in self.endings:
            cwd = self.fresh(-1 - len(self.endings))
            start(["--help"], cwd).wait()  # the first run of all waits for the imports
            started = time.perf_counter()
            run = start(CASES[name].arguments(resume=False), cwd)
            code = run.wait(300)
            self.took[name] = time.perf_counter() - started
            assert code == 0, f"{name} ended with {code}: {run.err}"
            self.endings[name] = ending(cwd / "run")
        return self.endings[name]

    def seconds(self, name: str) -> float:
        """What the case took when it was left alone."""
        self.expected(name)
        return self.took[name]


def ending(run: Path) -> Mapping[str, object]:
    """All that must be the same to the bit: weights and everything beside them, rows, the order of the data."""
    found: dict[str, object] = {}
    for folder in ("model", "best"):
        for path in sorted((run / folder).rglob("*")):
            if path.is_file():
                found[f"{folder}/{path.name}"] = hashlib.sha256(_content(path)).hexdigest()
    for name in ("metrics.jsonl", "candidates.jsonl"):
        path = run / name
        found[name] = (
            [untimed(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []
        )
    found["summary.json"] = untimed(json.loads((run / "summary.json").read_text()))
    return found


def _content(path: Path) -> bytes:
    """What a file says, but for where the run and the base of its adapter lie: runs are made in places of their own."""
    places = PLACES.get(path.name)
    if places is None:
        return path.read_bytes()
    said = {key: value for key, value in json.loads(path.read_bytes()).items() if key not in places}
    return json.dumps(said, sort_keys=True).encode()


def untimed(row: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in row.items() if key not in TIMED}


def differences(found: Mapping[str, object], expected: Mapping[str, object]) -> str:
    """What is not the same, by name; empty when everything is."""
    names = [name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)]
    return f"not the same: {', '.join(_where(name, found, expected) for name in names)}" if names else ""


def _where(name: str, found: Mapping[str, object], expected: Mapping[str, object]) -> str:
    """The name, and of rows the first that differs."""
    one, other = found.get(name), expected.get(name)
    if not (isinstance(one, list) and isinstance(other, list)):
        return name
    row = next(
        (row for row, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
    is_, was = (str(rows[row : row + 1])[:200] for rows in (one, other))
    return f"{name} row {row + 1} of {len(one)} ({is_}, not {was})"
