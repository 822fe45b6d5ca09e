"""The table on a real assistant: what is in the record is not measured again, and a row says what a run found."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import results
from benchmarks import table_real as real

MEANS = {"slot_error_rate": 0.7, "coverage": 0.5, "hallucination": 0.05, "repetition": 0.1, "length": 62.6}


def found() -> dict:
    better = {name: {"mean": value / 2} for name, value in MEANS.items()}
    halves = {
        name: {"mean": -value / 2, "low": -value, "high": 0.01 if name == "repetition" else -0.01}
        for name, value in MEANS.items()
    }
    base = {name: {"mean": value} for name, value in MEANS.items()}
    return {"systems": {"no-rl": base, "trained": better}, "differences": {"trained-no-rl": halves}}


def test_a_row_has_means_differences_and_intervals():
    cells = dict(zip(real.COLUMNS, real.row("lexical", 3, found(), 19.6), strict=True))
    assert (cells["system"], cells["seed"], cells["tokens"], cells["minutes"]) == ("lexical", "3", "31", "20")
    assert cells["slot errors"] == ".350"
    assert cells["slot errors to no-rl"] == "**-.350 [-.700, -.010]**"
    assert cells["said twice to no-rl"] == "-.050 [-.100, +.010]"  # 0 is in it: not bold
    assert real.base_row(found())[:4] == ["no-rl", "", ".700", ""]


def test_rows_stand_in_the_order_of_the_systems_and_one_of_the_same_run_is_replaced():
    record = real.add(
        {}, "requests", [real.row("oracle", 0, found(), 1), real.row("attention-values", 1, found(), 1)]
    )
    record = real.add(record, "requests", [real.base_row(found()), real.row("oracle", 0, found(), 2)])
    rows = [(row[0], row[1], row[-2]) for row in record["requests"]["rows"]]
    assert rows == [("no-rl", "", ""), ("attention-values", "1", "1"), ("oracle", "0", "2")]


def test_a_run_is_resumed_and_one_in_the_record_is_left_alone(tmp_path, monkeypatch):
    asked = []

    def cagsr(*arguments: str) -> str:
        asked.append(arguments)
        if arguments[0] == "train":
            place = next(Path(a.partition("=")[2]) for a in arguments if a.startswith("run.directory="))
            place.mkdir(parents=True, exist_ok=True)
            (place / "metrics.jsonl").write_text(
                '{"step": 1, "seconds": 90.0}\n{"step": 2, "seconds": 30.0}\n{}\n'
            )
        return json.dumps(found())

    monkeypatch.setattr(real, "_cagsr", cagsr)
    monkeypatch.setattr(real, "instruct_model", lambda console: "smol")
    where = ["--directory", str(tmp_path / "runs"), "--record", str(tmp_path / "real.json")]
    started = tmp_path / "runs" / "requests" / "length-0"
    started.mkdir(parents=True)
    (started / "run.json").write_text("{}")
    which = ["--task", "requests", "--seed", "0", "--system", "length", "--system", "oracle"]
    monkeypatch.setattr(sys, "argv", ["real", *where, *which])
    real.main()
    assert [(one[0], "--resume" in one) for one in asked] == [
        ("train", True),
        ("eval", False),
        ("train", False),
        ("eval", False),
    ]
    record = results.read(tmp_path / "real.json")
    assert [row[:2] + row[-2:-1] for row in record["requests"]["rows"][1:]] == [
        ["length", "0", "2"],
        ["oracle", "0", "2"],
    ]
    asked.clear()
    real.main()
    assert asked == []


@pytest.mark.parametrize("system", real.SYSTEMS)
def test_every_system_is_a_valid_config(system: str):
    from cagsr.config import Config
    from cagsr.rewards.presets import as_read

    config = Config.load(
        real.CONFIG,
        ["data.source=null", "data.holdout_column=null", "data.task=requests", *real.SYSTEMS[system]],
    )
    assert as_read(config).reward.heads in ("all", "learn")
