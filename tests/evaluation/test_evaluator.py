"""The reward of an evaluation, which decides which model of a run was the best."""

import numpy as np
import pytest
import torch

import cagsr.evaluation.evaluator as evaluation
from cagsr.config.schema import Sampling, Term
from cagsr.evaluation.evaluator import Answers, Evaluator
from cagsr.rewards.reward import SMALLEST_UNIT, Reward

TERMS = [Term("coverage"), Term("repetition"), Term("unfinished", weight=3.0, standardise="none")]


@pytest.fixture
def evaluate(monkeypatch):
    """An evaluator whose policy answers two prompts: greedy, then the samples of the base, then greedy again."""
    answered = iter(
        [
            [[[2.0, 0.0, 0.0]], [[6.0, 0.0, -1.0]]],
            [[[2.0, 0.0, 0.0], [4.0, 0.0, 0.0]], [[9.0, 0.0, -1.0], [5.0, 0.0, 0.0]]],
            [[[6.0, 0.0, 0.0]], [[8.0, -0.5, 0.0]]],
        ]
    )
    asked = []

    def answer(policy, prompts, sampling, *, prompts_per_pass, **_):
        asked.append((len(prompts), sampling.candidates, sampling.temperature, prompts_per_pass))
        values = np.array(next(answered), dtype=np.float32)
        shape = values.shape[:2]
        return Answers([["a"]] * len(values), *[np.ones(shape)] * 3, values)

    monkeypatch.setattr(evaluation, "answer", answer)
    # Two answers stand for sixty; what was answered is not looked at here.
    monkeypatch.setattr(evaluation, "response_rows", lambda *_: [])
    prompts = [None] * 60
    made = Evaluator(None, prompts, Sampling(candidates=2), Reward(TERMS), None, None, None, 11)
    made.asked = asked
    return made


def test_the_base_is_0_and_its_unit_is_the_spread_of_its_samples_of_a_prompt(evaluate):
    assert evaluate()["reward"] == 0
    # Variances of coverage within the two groups: 1 and 4.
    assert evaluate.start["spread"] == pytest.approx([2.5**0.5, SMALLEST_UNIT, 1.0])
    # coverage from 4 to 7; repetition from 0 to -1/4, in the smallest unit; unfinished, raw, from -1/2 to 0
    moved = 3 / 2.5**0.5 - 0.25 / SMALLEST_UNIT + 3 * 0.5
    assert evaluate()["reward"] == pytest.approx(moved)


def test_an_evaluation_keeps_the_ends_of_its_intervals(evaluate):
    evaluate()
    # Of two prompts every fourth resample is the better one twice, so that the ends are the two themselves.
    apart = 2 / 2.5**0.5 - 3 * 0.5
    assert evaluate.ends["reward/low"] == pytest.approx(apart)
    assert evaluate.ends["reward/high"] == pytest.approx(-apart)
    assert (evaluate.ends["length/low"], evaluate.ends["length/high"]) == (1, 1)


def test_only_the_first_call_samples_and_on_few_prompts(evaluate):
    evaluate()
    evaluate()
    assert evaluate.asked == [(60, 1, 0.0, 11), (50, 2, 1.0, 5), (60, 1, 0.0, 11)]


def test_a_run_that_goes_on_keeps_its_unit(evaluate):
    evaluate.start = {"mean": [1.0, 0.0, 0.0], "spread": [2.0, 1.0, 1.0]}
    assert evaluate()["reward"] == pytest.approx((4 - 1) / 2 - 3 * 0.5)


def test_terms_over_the_batch_have_the_spread_of_all_rows():
    reward = Reward([Term("coverage", standardise="batch")])
    assert reward.spread(torch.tensor([[2.0], [4.0], [9.0], [5.0]]), 2).tolist() == pytest.approx([6.5**0.5])


def test_relative_takes_any_leading_axes():
    signals = torch.tensor([[[3.0, 1.0, 1.0]], [[1.0, 0.5, 0.0]]])
    found = Reward(TERMS).relative(signals, torch.tensor([1.0, 0.0, 0.0]), torch.tensor([2.0, 0.5, 7.0]))
    assert found.tolist() == [[1 + 2 + 3], [0 + 1 + 0]]
