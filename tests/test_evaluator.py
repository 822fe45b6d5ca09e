"""The reward of an evaluation, which decides which model of a run was the best."""

import numpy as np
import pytest

import cagsr.evaluation as evaluation
from cagsr.evaluation import Answers, Evaluator
from cagsr.reward import Reward, Term


def test_a_signal_without_spread_at_the_base_is_measured_as_it_is(monkeypatch):
    signals = iter(
        [
            [[2.0, 0.0], [4.0, 0.0], [6.0, 0.0]],
            [[6.0, 0.0], [8.0, -0.25], [10.0, -0.5]],
        ]
    )

    def answered(*_, **__):
        values = np.array(next(signals))[:, None]
        return Answers([["a"]] * 3, np.ones((3, 1)), np.ones((3, 1)), values)

    monkeypatch.setattr(evaluation, "answer", answered)
    evaluate = Evaluator(None, [], None, Reward([Term("coverage"), Term("repetition")]), None, None, None, 1)
    assert evaluate()["reward"] == 0
    # coverage: 4 up, in units of the base's sqrt(8 / 3); repetition: a mean of -1/4, raw
    assert evaluate()["reward"] == pytest.approx(4 / (8 / 3) ** 0.5 - 0.25)
