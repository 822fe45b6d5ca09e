"""Signals that read log-probabilities, against values computed by hand."""

import pytest

from cagsr.rewards.signals import SIGNALS
from evidence import make_evidence

certainty, precision = SIGNALS["certainty"], SIGNALS["precision"]
reference_logprob, surprise = SIGNALS["reference_logprob"], SIGNALS["surprise"]

FLAT = [[[0.2] * 5] * 3] * 2


def test_precision_weighs_each_token_by_its_attention_to_salient_ones():
    rows = [[[0.5, 0.0, 0.9], [0.0, 0.25, 0.0]], [[0.0, 0.0, 0.8], [0.0, 0.0, 0.8]]]
    evidence = make_evidence(rows, salience=[[0.6, 0.4, 0.0]], logprobs=[[-1.0, -3.0], [-2.0, -4.0]])
    # s = (0.3, 0.1); the second response never looks at a salient token and has its plain mean.
    assert precision(evidence).tolist() == pytest.approx([(0.3 * -1 + 0.1 * -3) / 0.4, -3.0])


def test_an_immediate_end_has_the_precision_of_that_end_and_not_the_best_of_all():
    evidence = make_evidence(FLAT, lengths=[1, 3], finished=[True, True], logprobs=[[-6.0] * 3, [-1.0] * 3])
    assert precision(evidence).tolist() == pytest.approx([-6.0, -1.0])


def test_reference_logprob_is_the_mean_over_the_responses_own_tokens():
    evidence = make_evidence(FLAT, lengths=[2, 3], logprobs=[[-1.0, -2.0, -50.0], [-1.0, -2.0, -6.0]])
    assert reference_logprob(evidence).tolist() == pytest.approx([-1.5, -3.0])


def test_certainty_is_the_mean_over_the_responses_own_tokens():
    evidence = make_evidence(FLAT, lengths=[2, 3], certainty=[[4.0, 2.0, 50.0], [1.0, 2.0, 6.0]])
    assert certainty(evidence).tolist() == pytest.approx([3.0, 3.0])


def test_surprise_charges_from_two_nats_to_four_and_divides_by_the_segments():
    # Costs 0, 0.5, 1 and 0, 0, 0.25; salient runs: tokens 0-1 and 3.
    evidence = make_evidence(
        FLAT, salience=[[0.2, 0.3, 0.0, 0.5, 0.0]], logprobs=[[-1.0, -3.0, -9.0], [0.0, -2.0, -2.5]]
    )
    assert surprise(evidence).tolist() == pytest.approx([-1.5 / 2, -0.25 / 2])


def test_surprise_takes_its_threshold_and_width_from_the_options():
    evidence = make_evidence(FLAT, logprobs=[[-1.0, -3.0, -9.0], [0.0, -2.0, -2.5]])
    found = surprise(evidence, threshold=1.0, width=4.0)
    assert found.tolist() == pytest.approx([-1.5, -(0.25 + 0.375)])


@pytest.mark.parametrize(
    ("weights", "segments"),
    [([0, 0, 0, 0, 0], 1), ([1, 1, 1, 1, 1], 1), ([1, 0, 1, 0, 1], 3), ([0, 1, 1, 0, 1], 2)],
)
def test_a_segment_is_a_run_of_salient_tokens_and_there_is_at_least_one(weights, segments):
    evidence = make_evidence(FLAT, salience=[weights], logprobs=[[-9.0] * 3] * 2)
    assert surprise(evidence).tolist() == pytest.approx([-3 / segments] * 2)
