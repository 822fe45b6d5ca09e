"""Signals that ask the observer again, on numbers made by hand."""

import math
from dataclasses import replace

import pytest
import torch

from cagsr.errors import InputError
from cagsr.rewards.signals import SIGNALS
from evidence import make_evidence, make_prompt

PROMPT = make_prompt("tea ; day monday .")
"""Two segments: column 0, and columns 2 and 3."""


class Told:
    """Log-probabilities [N T] by which prompt columns are there."""

    def __init__(self, **by_columns):
        self.by_columns = by_columns

    def logprobs(self, rollout):
        there = "c" + "".join(map(str, rollout.prompt_mask[0].nonzero().flatten().tolist()))
        return torch.tensor(self.by_columns[there])


@pytest.fixture
def evidence():
    made = make_evidence(
        torch.zeros(2, 3, 6),
        prompts=[PROMPT],
        salience=[[0.5, 0, 0.3, 0.2, 0, 0]],
        lengths=[3, 2],
        logprobs=[[-1.0, -4.0, -3.0], [-5.0, -0.5, 0.0]],
    )
    told = Told(
        c12345=[[-6.0, -3.0, -3.0], [-5.0, -0.5, 0.0]],  # without tea: 5, -1, 0 and 0, 0
        c0145=[[-1.0, -7.0, -4.0], [-3.0, -1.5, 0.0]],  # without day monday: 0, 3, 1 and -2, 1
        c145=[[-9.0, -2.5, -3.0], [-1.0, -0.75, 0.0]],  # without either
    )
    return replace(made, observer=told)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_knockout_adds_up_what_each_segment_explains_of_the_whole_response(evidence):
    # D = (4, 4) and (0, -1).
    expected = [sigmoid(1), (sigmoid(-3) + sigmoid(-4)) / 2]
    assert SIGNALS["knockout"](evidence).tolist() == pytest.approx(expected)


def test_knockout_may_weigh_a_segment_by_its_salience(evidence):
    skewed = replace(evidence, salience=torch.tensor([[0.2, 0, 0.3, 0.5, 0, 0]]))
    found = SIGNALS["knockout"](skewed, weights="salience", threshold=1.0)
    assert found.tolist() == pytest.approx([sigmoid(3), 0.2 * sigmoid(-1) + 0.8 * sigmoid(-2)])


def test_unexplained_charges_a_surprise_by_what_no_segment_explains_of_it(evidence):
    # Row 0: costs 0, 1, .5; explained 5, 3, 1 of 2 nats. Row 1: costs 1, 0; explained 0, 1. Two segments.
    assert SIGNALS["unexplained"](evidence).tolist() == pytest.approx([-0.5 * 0.5 / 2, -1 / 2])
    assert SIGNALS["unexplained"](evidence, explained=6.0).tolist() == pytest.approx(
        [-(1 * 0.5 + 0.5 * 5 / 6) / 2, -1 / 2]
    )


def told(explains_of_tea, explains_of_day, **settings):
    """Evidence in which the two segments explain the tokens of one response by these nats."""
    width = len(explains_of_tea)
    made = make_evidence(
        torch.zeros(1, width, 6), prompts=[PROMPT], salience=[[0.5, 0, 0.3, 0.2, 0, 0]], **settings
    )
    without = {
        "c12345": [[-nats for nats in explains_of_tea]],
        "c0145": [[-nats for nats in explains_of_day]],
    }
    return replace(made, observer=Told(**without))


def test_retold_charges_every_mention_of_a_segment_but_its_clearest():
    # tea: mentions at 0-1 (peak 5), 6 (peak 4), 11 (peak 6, the clearest); day monday: one mention.
    tea = [2.0, 5.0, 0.0, 0.0, 0.0, 0.0, 4.0, 0.5, 0.5, 0.5, 0.5, 6.0]
    day = [0.0, 0.0, 7.0, 3.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    found = SIGNALS["retold"](told(tea, day))
    assert found.tolist() == pytest.approx([-(sigmoid(1) + sigmoid(0)) / 2])


def test_tokens_near_each_other_are_one_mention():
    tea = [5.0, 0.0, 0.0, 0.0, 5.0, 0.0, 0.0, 0.0, 0.0, 5.0]
    nothing = [0.0] * 10
    assert SIGNALS["retold"](told(tea, nothing)).tolist() == pytest.approx([-sigmoid(1) / 2])
    assert SIGNALS["retold"](told(tea, nothing), gap=4).tolist() == pytest.approx([0.0])
    assert SIGNALS["retold"](told(tea, nothing), gap=0).tolist() == pytest.approx([-2 * sigmoid(1) / 2])


def test_the_end_says_nothing_again():
    tea = [5.0, 0.0, 0.0, 0.0, 0.0, 5.0]
    assert SIGNALS["retold"](told(tea, [0.0] * 6, finished=[True])).tolist() == pytest.approx([0.0])
    assert SIGNALS["retold"](told(tea, [0.0] * 6)).tolist() == pytest.approx([-sigmoid(1) / 2])


def test_contradiction_charges_what_would_be_likelier_for_no_prompt(evidence):
    assert SIGNALS["contradiction"](evidence).tolist() == pytest.approx([-1.5 / 2, -4 / 2])
    assert SIGNALS["contradiction"](evidence, threshold=1.0).tolist() == pytest.approx([-0.5 / 2, -3 / 2])


@pytest.mark.parametrize("name", ["knockout", "unexplained", "contradiction", "retold"])
def test_a_signal_that_asks_again_says_so_where_nobody_answers(evidence, name):
    with pytest.raises(InputError, match="asks the observer again"):
        SIGNALS[name](replace(evidence, observer=None))


class ByFirst:
    """Log-probabilities [K T] by a prompt's first token; counts how often it is asked."""

    def __init__(self, told):
        self.told, self.asked = told, 0

    def logprobs(self, rollout):
        self.asked += 1
        assert rollout.prompt_mask.all()
        return torch.tensor(self.told[int(rollout.prompt_ids[0, 0])])


@pytest.fixture
def swaps():
    """Two prompts of two responses; of the first, pieces 0 and 2 can be exchanged, of the second none."""
    made = make_evidence(
        torch.zeros(4, 2, 3),
        group_size=2,
        response_ids=[[2, 3], [4, 0], [5, 6], [7, 8]],
        lengths=[2, 1, 2, 2],
        logprobs=[[-1.0, -4.0], [-5.0, 0.0], [-1.0, -1.0], [-2.0, -2.0]],
    )
    observer = ByFirst({20: [[-1.0, -5.5], [-3.0, 0.0]], 21: [[-9.0, -9.0], [-5.25, 0.0]]})
    return replace(
        made, observer=observer, contrasts=lambda prompt: ({0: (20, 3), 2: (21, 3, 4)}, {})[prompt.index]
    )


def test_swapped_asks_for_the_piece_whose_turn_it_is(swaps):
    # The tokens add up to 9, so it is the second one's turn; 13 nats are more than counts.
    assert SIGNALS["swapped"](swaps).tolist() == pytest.approx([8.0, 0.25, 0, 0])
    assert swaps.observer.asked == 1


def test_swapped_takes_the_mean_over_the_pieces_asked(swaps):
    assert SIGNALS["swapped"](swaps, asked=3).tolist() == pytest.approx(
        [(1.5 + 8) / 2, (-2 + 0.25) / 2, 0, 0]
    )
    assert swaps.observer.asked == 2
    assert SIGNALS["swapped"](swaps, asked=2, most=1.0).tolist() == pytest.approx(
        [1.0, (-1 + 0.25) / 2, 0, 0]
    )


def test_swapped_says_where_nothing_can_be_exchanged(swaps):
    with pytest.raises(
        InputError, match=r"swapped: there is nothing to exchange.*reward\.salience\.kind: pieces"
    ):
        SIGNALS["swapped"](replace(swaps, contrasts=None))
    with pytest.raises(InputError, match="swapped asks the observer again"):
        SIGNALS["swapped"](replace(swaps, observer=None))
