"""The table of candidates on dashboards."""

import sys
from types import SimpleNamespace

import pytest
from accelerate.tracking import TensorBoardTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cagsr.training.tracker_tables import show_candidates

ROW = {"prompt": "a | b\nc", "response": "<b>*x*</b> \ud800", "reward": 1.23456, "advantage": -0.5}
ROWS = [ROW | {"signals": {"mass": 0.25}}]


def test_tensorboard_gets_a_markdown_table_of_plain_text(tmp_path):
    tracker = TensorBoardTracker("run", tmp_path)
    tracker.start()
    show_candidates([tracker], 4, ROWS)
    tracker.finish()
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    (event,) = events.Tensors("candidates/text_summary")
    assert event.step == 4
    assert event.tensor_proto.string_val[0].decode().split("\n") == [
        "| prompt | response | reward | advantage | mass |",
        "| --- | --- | --- | --- | --- |",
        r"| a \| b c | \<b\>\*x\*\</b\> \\ud800 | 1.23 | -0.5 | 0.25 |",
    ]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_others_get_their_own_table(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(Table=lambda columns, data: (columns, data)))
    logged = []
    tracker = SimpleNamespace(name=name, log=lambda values, step: logged.append((step, values)))
    show_candidates([tracker], 7, ROWS)
    columns = ["prompt", "response", "reward", "advantage", "mass"]
    assert logged == [
        (7, {"candidates": (columns, [["a | b\nc", "<b>*x*</b> \ud800", 1.23456, -0.5, 0.25]])})
    ]


def test_without_candidates_nothing_is_logged():
    logged = []
    tracker = SimpleNamespace(name="wandb", log=lambda *given, **named: logged.append(given))
    show_candidates([tracker], 1, [])
    assert logged == []
