"""A signal of the user's own: a plain function in the working directory, named in the config by its path."""

import json
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from cagsr.cli.main import main
from cagsr.models.from_scratch import new_model
from cagsr.tasks import TASKS, tokenizer

SIGNALS = """
    def long(evidence, *, scale: float = 1.0):
        return evidence.rollout.lengths.float() * scale

    def raises(evidence):
        raise RuntimeError("boom")

    def nan(evidence):
        return evidence.rollout.lengths / 0 * 0

    def short(evidence):
        return evidence.rollout.lengths.float()[:-1]

    def number(evidence):
        return 1.0
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    words = tokenizer(TASKS["slots"], "encoder-decoder")
    new_model("t5", words, layers=1, hidden=16, heads=2).save_pretrained(place)
    words.save_pretrained(place)
    return place


@pytest.fixture
def train(model, tmp_path, monkeypatch, capsys):
    """``train(term)`` in a directory with the module ``mine``: exit code, standard output, standard error."""
    (tmp_path / "mine.py").write_text(textwrap.dedent(SIGNALS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)

    def run(term):
        AcceleratorState._reset_state(reset_partial_state=True)
        command = ["cagsr", "train", "data.task=slots", "data.count=5", "data.evaluation_count=3"]
        command += [f"model.name={model}", "run.directory=run", "train.steps=1", "train.prompts_per_step=2"]
        command += ["sampling.candidates=3", "sampling.max_new_tokens=5", f"reward.terms=[{term}]"]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, *capsys.readouterr()

    yield run
    sys.modules.pop("mine", None)


def test_a_function_of_ones_own_is_a_reward(train):
    code, out, err = train("{signal: mine.long, options: {scale: 2.0}}")
    assert code == 0, err
    assert "reward mine.long" in out
    step = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[1])
    assert step["signal/mine.long"] == pytest.approx(2 * step["length"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", "signal 'mine.raises' failed on 3 rows (prompt indices "),
        ("nan", "signal 'mine.nan' is nan in row 0 (prompt index "),
        ("short", "signal 'mine.short' returned shape [2] for 3 rows, expected [3]"),
        ("number", "signal 'mine.number' returned float, expected a tensor of shape [3]"),
    ],
)
def test_one_that_fails_stops_the_run_and_is_named(train, name, message):
    code, _, err = train(f"{{signal: mine.{name}}}")
    assert code == 3
    assert f"error: {message}" in err
    assert "Traceback" not in err
    assert not Path("run/model").exists()
