"""What a step says of settings under which it teaches little."""

from io import StringIO

import pytest
from rich.console import Console

from cagsr.config.schema import Sampling
from cagsr.training.step_warnings import StepWarnings


def said(*rows, candidates=8):
    console = Console(file=StringIO(), width=400)
    watcher = StepWarnings(console, Sampling(max_new_tokens=7, candidates=candidates))
    for step, (finished, spread) in enumerate(rows, start=1):
        watcher.on_step(step, {"finished": finished, "reward_spread": spread}, None)  # type: ignore[arg-type]
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_most_responses_cut_off_are_told_once_with_the_key_to_raise():
    (line,) = said((0.6, 1.0), (0.25, 1.0), (0.0, 1.0))
    assert line == (
        "warning: step 2: 75% of the responses were cut off at sampling.max_new_tokens (7), and are judged without "
        "their end; raise it"
    )


def test_a_step_whose_rewards_do_not_differ_is_told_once():
    (line,) = said((1.0, 1.0), (1.0, 0.0), (1.0, 0.0))
    assert line.startswith("warning: step 2: all candidates of a prompt have the same reward")


@pytest.mark.parametrize(("row", "candidates"), [((0.5, 0.001), 8), ((1.0, 0.0), 1)])
def test_an_ordinary_step_and_a_single_candidate_say_nothing(row, candidates):
    assert said(row, candidates=candidates) == []
