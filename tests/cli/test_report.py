"""`cagsr report`, and the report that other commands end with."""

import json
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

import made_runs
from cagsr.report import command


def test_a_report_is_written_beside_its_run_and_its_path_is_printed(cagsr):
    made_runs.make_run(Path("runs/mine"))
    outcome = cagsr("report", "runs/mine")
    assert outcome == (0, "runs/mine/report.html\n", "")
    assert "<title>mine · cagsr report</title>" in Path("runs/mine/report.html").read_text()


def test_several_runs_go_where_they_are_told(cagsr):
    runs = [str(made_runs.make_run(Path(name))) for name in ("a", "b")]
    assert cagsr("report", *runs, "--output", "both.html") == (0, "both.html\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere holds no run: none of run.json"),
        (["run", "--output", "no/where.html"], "no is no directory"),
        (["run", "--watch", "--output", "a.html"], "--watch serves the page and writes no file"),
    ],
)
def test_a_mistake_is_one_message(cagsr, arguments, message):
    made_runs.make_run(Path("run"))
    outcome = cagsr("report", *arguments)
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: {message}")


def test_training_ends_with_a_report(train):
    outcome = train("reward.preset=coverage", "train.evaluate_every=1")
    assert outcome.code == 0, outcome.err
    assert outcome.out.endswith("report: run/report.html\n")
    page = Path("run/report.html").read_text()
    data = json.loads(re.search('id="data">(.*?)</script>', page)[1])  # type: ignore[index]
    (browse,) = data["browse"]
    assert browse["signals"] == ["coverage", "surprise", "repetition", "unfinished"]
    assert [(group["s"], len(group["w"])) for group in browse["groups"]] == [(1, 3), (1, 3), (2, 3), (2, 3)]
    assert any(look for one in browse["groups"][0]["w"] for look in one["l"])


def test_a_run_that_the_watch_stops_has_a_report_too(train):
    outcome = train("watch.length={limit: 0.001, action: stop, patience: 1}", "reward.preset=coverage")
    assert outcome.code == 75
    assert "stopped: step 1" in Path("run/report.html").read_text()


def test_a_report_that_fails_loses_no_run(train, monkeypatch):
    def fail(directories):
        raise ZeroDivisionError("a bug of ours")

    monkeypatch.setattr(command, "write_report", fail)
    outcome = train("reward.preset=coverage")
    assert outcome.code == 0
    assert Path("run/model/model.safetensors").exists()
    assert " ".join(outcome.out.split()).endswith(
        "warning: the run's records are whole, its report is not (ZeroDivisionError: a bug of ours). "
        "Try again: cagsr report run"
    )


def test_watch_serves_until_ctrl_c(tmp_path):
    made_runs.make_run(tmp_path / "run")
    command = [sys.executable, "-u", "-m", "cagsr", "report", "run", "--watch"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        try:
            line = started.stdout.readline()
            address = re.search(r"http://127\.0\.0\.1:\d+/", line)
            assert address, line
            with urllib.request.urlopen(address[0], timeout=10) as answer:
                assert "<title>run · cagsr report</title>" in answer.read().decode()
            started.send_signal(signal.SIGINT)
            assert started.wait(timeout=20) == 0
        finally:
            started.kill()
