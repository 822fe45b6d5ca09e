"""Tiny saved models, a way to run the command line in this process, and a directory to run it in."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState

import tiny
from command_line import Outcome, settle, typed, typed_once

SMALL = (
    "data.count=11",
    "data.evaluation_count=2",
    "train.steps=2",
    "train.prompts_per_step=2",
    "train.micro_batch=6",
    "sampling.candidates=3",
    "sampling.max_new_tokens=7",
    "reward.preset=coverage",
)
OF_TRAINED = ("reward.preset=robust", "train.evaluate_every=1", "train.learning_rate=0.01")


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A directory with ``t5`` and ``llama``: random weights, two layers, the words of the task ``slots``."""
    root = tmp_path_factory.mktemp("models")
    tiny.save_models(root)
    return root


@pytest.fixture
def variant(models, tmp_path):
    """``variant("llama", config={"eos_token_id": None})``: a copy with keys of its JSON files changed."""

    def make(base: str, name: str = "variant", **changes: dict[str, Any]) -> Path:
        directory = shutil.copytree(models / base, tmp_path / name)
        for file, keys in changes.items():
            path = directory / f"{file}.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))
        return directory

    return make


@pytest.fixture
def cagsr(tmp_path, monkeypatch, capsys):
    """``cagsr("train", ...)`` as typed in ``tmp_path``: exit code, standard output, standard error."""
    settle(tmp_path, monkeypatch)

    def run(*arguments: object) -> Outcome:
        return typed([*map(str, arguments)], monkeypatch, capsys)

    yield run
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def small() -> tuple[str, ...]:
    """Overrides that make any run small."""
    return SMALL


@pytest.fixture
def train(cagsr, models):
    """``train("key=value", ...)``: two steps on ``slots`` with the tiny T5, in ``run``."""

    def run(*arguments: object, model: str | Path = "t5", task: str | None = "slots") -> Outcome:
        name = model if isinstance(model, Path) else models / model
        return cagsr(*training(name, task), *arguments)

    return run


def training(model: Path, task: str | None = "slots") -> list[str]:
    data = [f"data.task={task}"] if task else []
    return ["train", *SMALL, *data, f"model.name={model}", "run.directory=run"]


@pytest.fixture(scope="session")
def trained(models, tmp_path_factory) -> tuple[Path, Outcome]:
    """A finished run of `train`, by the default reward, evaluated after each step; and what its command said."""
    place = tmp_path_factory.mktemp("trained")
    outcome = typed_once(place, [*training(models / "t5"), *OF_TRAINED])
    assert outcome.code == 0, outcome.err
    return place / "run", outcome


@pytest.fixture
def finished(trained, cagsr, tmp_path) -> Outcome:
    """A copy of it as ``run`` in the working directory."""
    shutil.copytree(trained[0], tmp_path / "run")
    return trained[1]


@pytest.fixture
def go_on(finished, train):
    """``go_on("key=value", ...)``: the command of ``finished`` once more, with --resume."""
    return lambda *arguments: train("--resume", *OF_TRAINED, *arguments)


@pytest.fixture
def rows(tmp_path):
    """``rows("file.jsonl", {...}, ...)`` writes a JSONL file; what is not a mapping is written as it is."""

    def write(name: str, *values: Any) -> str:
        lines = [value if isinstance(value, str) else json.dumps(value) for value in values]
        (tmp_path / name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return name

    return write
