"""What is optional (a dashboard, a card, a callback's wish) stops no run, and is named once where it failed."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate.tracking import TensorBoardTracker

from cagsr.training import recorder

TRACKED = ("run.trackers=[tensorboard]", "train.steps=6", "reward.preset=coverage")


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def steps() -> list[int]:
    return [row["step"] for row in lines("run/metrics.jsonl") if "loss" in row]


@pytest.fixture
def breaking(monkeypatch):
    """``breaking("log", 4, error)``: the dashboard's method raises at its n-th call; counts its calls."""

    def plan(method: str, at: int, error: BaseException) -> list[int]:
        calls, original = [0], getattr(TensorBoardTracker, method)

        def called(*given, **named):
            calls[0] += 1
            if calls[0] == at:
                raise error
            return original(*given, **named)

        monkeypatch.setattr(TensorBoardTracker, method, called)
        return calls

    return plan


def test_a_dashboard_that_fails_is_named_once_and_the_run_ends_whole(train, breaking):
    calls = breaking("log", 4, ConnectionError("no route\nto host"))
    outcome = train(*TRACKED)
    assert outcome.code == 0, outcome.err
    assert steps() == [1, 2, 3, 4, 5, 6]
    assert Path("run/model/model.safetensors").exists()
    assert calls[0] == 4
    said = " ".join(outcome.out.split())
    message = "run.trackers: tensorboard failed at step {} (ConnectionError: no route to host) and is told nothing more"
    (warning,) = json.loads(Path("run/summary.json").read_text())["warnings"]
    at = next(row["step"] for row in lines("run/metrics.jsonl") if "warning" in row)
    assert warning.startswith(message.format(at))
    assert said.count(message.format(at)) == 2  # when it failed, and at the end
    again = train(*TRACKED, "--resume", "train.steps=7", "--accept-changes")
    assert again.code == 0, again.err
    assert "run.trackers" not in again.out  # it was opened again, and holds
    assert calls[0] > 4


@pytest.mark.parametrize(
    ("method", "when"),
    [
        ("start", "while it was opened"),
        ("store_init_configuration", "while it was opened"),
        ("log", "at step 0"),
        ("finish", "while it was closed"),
    ],
)
@pytest.mark.parametrize(
    "error", [SystemExit(1), OSError(28, "No space left on device")], ids=["exit", "disk"]
)
def test_a_dashboard_may_fail_at_any_time(train, breaking, method, when, error):
    breaking(method, 1, error)
    outcome = train(*TRACKED, "train.steps=2")
    assert outcome.code == 0, outcome.err
    assert steps() == [1, 2]
    (warning,) = json.loads(Path("run/summary.json").read_text())["warnings"]
    assert f"tensorboard failed {when} ({type(error).__name__}: " in warning


def test_a_dashboard_that_cannot_write_to_the_disk_costs_no_checkpoint(train, monkeypatch):
    start = TensorBoardTracker.start

    def started(tracker):
        start(tracker)
        tracker.writer.flush = lambda: (_ for _ in ()).throw(OSError(5, "Input/output error"))

    monkeypatch.setattr(TensorBoardTracker, "start", started)
    outcome = train(*TRACKED, "train.steps=2")
    assert outcome.code == 0, outcome.err
    (warning,) = json.loads(Path("run/summary.json").read_text())["warnings"]
    assert "Input/output error" in warning
    assert list(Path("run/checkpoints").iterdir())


def test_the_row_of_a_step_is_written_before_anybody_else_is_told_of_it(train, monkeypatch):
    seen = []

    def log(tracker, values, step, **named):
        if "loss" in values:
            seen.append((step, steps()[-1]))

    monkeypatch.setattr(TensorBoardTracker, "log", log)
    assert train(*TRACKED).code == 0
    assert seen == [(step, step) for step in range(1, 7)]


def wandb(key: str | None, disabled: bool = False) -> SimpleNamespace:
    spec = SimpleNamespace(name="wandb", loader=None)
    return SimpleNamespace(
        __spec__=spec, api=SimpleNamespace(api_key=key, disabled=lambda: disabled), __version__="0.22"
    )


def test_wandb_without_a_key_is_named_before_the_model_loads(train, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", wandb(None))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    outcome = train("run.trackers=[wandb]", model=Path("nowhere"))
    assert outcome.code == 2
    assert outcome.err.startswith("error: run.trackers: wandb has no API key: run `wandb login`")
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("module", "mode"), [(wandb("k"), ""), (wandb(None), "offline"), (wandb(None, disabled=True), "")]
)
def test_wandb_with_a_key_or_without_a_server_is_not_refused(train, monkeypatch, module, mode):
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setenv("WANDB_MODE", mode)
    assert "no directory 'nowhere' here" in train("run.trackers=[wandb]", model=Path("nowhere")).err


def test_a_card_that_cannot_be_written_costs_no_model(train, monkeypatch):
    monkeypatch.setattr(recorder, "model_card", lambda *given: 1 // 0)
    outcome = train("reward.preset=coverage", "train.evaluate_every=1")
    assert outcome.code == 0, outcome.err
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["steps"] == 2
    assert "the card of model/ was not written (ZeroDivisionError" in summary["warnings"][0]


def test_a_dashboard_that_hangs_is_left_when_the_run_is_asked_to_stop(train, monkeypatch):
    log = TensorBoardTracker.log

    def hanging(tracker, values, step, **named):
        if step == 2 and "loss" in values:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        log(tracker, values, step, **named)

    monkeypatch.setattr(TensorBoardTracker, "log", hanging)
    started = time.monotonic()
    outcome = train(*TRACKED)
    assert time.monotonic() - started < 60
    assert (outcome.code, "stopped by SIGTERM after step 2 of 6; everything is saved" in outcome.err) == (
        75,
        True,
    )
    assert "tensorboard failed at step 2 (Unfinished" in " ".join(outcome.out.split())
    assert steps() == [1, 2]
    monkeypatch.setattr(TensorBoardTracker, "log", log)
    again = train(*TRACKED, "--resume")
    assert again.code == 0, again.err
    assert steps() == [1, 2, 3, 4, 5, 6]
