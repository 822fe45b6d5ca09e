"""A forked run is the run that a user starts: the same weights, exit codes, output and end by a signal."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest

import runs

SMALL = [
    "data.task=slots",
    "data.count=11",
    "data.evaluation_count=5",
    "train.steps=2",
    "train.prompts_per_step=2",
    "train.micro_batch=6",
    "sampling.candidates=3",
    "sampling.max_new_tokens=7",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return runs.models(tmp_path_factory.mktemp("runs"))


def weights(run: Path) -> str:
    return sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()


def test_a_forked_run_ends_with_the_weights_of_a_plain_one(place: Path):
    arguments = ["train", *SMALL, "model.name=llama"]
    forked = runs.start([*arguments, "run.directory=forked"], place)
    plain = subprocess.run(
        [sys.executable, "-m", "cagsr", *arguments, "run.directory=plain"],
        cwd=place,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert forked.wait() == 0, forked.err
    assert weights(place / "forked") == weights(place / "plain")
    assert forked.out.splitlines()[:2] == plain.stdout.splitlines()[:2]
    assert len(forked.out.splitlines()) > 2


def test_a_mistake_gives_its_message_and_exit_code(place: Path):
    run = runs.start(["train", "train.stepz=1"], place)
    assert run.wait() == 2
    assert "stepz" in run.err
    assert run.out == ""


@pytest.mark.parametrize(
    ("before", "code"),
    [
        (partial(sys.exit, 75), 75),
        (partial(signal.raise_signal, signal.SIGKILL), -9),
        (partial(int, "no number"), 1),
    ],
)
def test_what_ends_a_run_comes_through(before, code: int, place: Path):
    assert runs.start(["train"], place, before=before).wait() == code


def test_a_run_has_its_own_variables_and_directory(place: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("OUTSIDE", "from outside")
    monkeypatch.setenv("PYTHONPATH", "somewhere")
    run = runs.start(["train"], tmp_path, {"GIVEN": "by hand"}, partial(exec, SHOW))
    assert run.wait() == 0
    assert run.out == f"by hand, from outside, somewhere, {tmp_path}\n"
    assert "GIVEN" not in os.environ
    assert os.environ["PYTHONPATH"] == "somewhere"


SHOW = """
import os, sys
print(*(os.environ[name] for name in ("GIVEN", "OUTSIDE", "PYTHONPATH")), os.getcwd(), sep=", ")
sys.exit()
"""
WAIT = "import signal; print('ready'); signal.pause()"


def test_a_run_that_goes_on_too_long_is_killed(place: Path):
    run = runs.start(["train"], place, before=partial(exec, WAIT))
    while "ready" not in run.out:  # for however long the start takes
        time.sleep(0.01)
    with pytest.raises(TimeoutError, match="it went on after 1 s; it last said: ready"):
        run.wait(1)
    assert run.wait() == -9
    with pytest.raises(ProcessLookupError):
        os.kill(run.pid, 0)
