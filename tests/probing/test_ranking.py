"""How a score ranks the candidates of a prompt: values by hand."""

import numpy as np
import pytest

from cagsr.probing.ranking import partial_rank_correlation, rank, truth_of_best, within_prompt_auc


def test_the_better_of_two_candidates_scores_higher_in_this_share_of_pairs():
    # Pairs with different truth: (0,2) (1,2); the scores order one rightly and tie on the other.
    assert within_prompt_auc(np.array([[1.0, 5.0, 5.0]]), np.array([[0.0, 0.0, 1.0]])).tolist() == [0.75]


def test_prompts_are_never_compared_with_one_another():
    scores, truth = np.array([[1.0, 2.0], [11.0, 12.0]]), np.array([[8.0, 9.0], [2.0, 1.0]])
    assert within_prompt_auc(scores, truth).tolist() == [1.0, 0.0]


def test_a_prompt_of_equally_good_candidates_ranks_nothing():
    assert np.isnan(within_prompt_auc(np.array([[1.0, 2.0, 3.0]]), np.array([[4.0, 4.0, 4.0]]))).all()
    ranked = rank(np.arange(6.0).reshape(2, 3), np.full((2, 3), 4.0), np.zeros((1, 2, 3)))
    assert ranked.auc is None
    assert (ranked.gain.mean, ranked.partial.mean) == (0.0, 0.0)


def test_the_same_response_measured_in_another_batch_is_a_tie():
    scores = np.array([[0.1, 0.1 + 1e-9]])
    assert within_prompt_auc(scores, np.array([[0.0, 1.0]])).tolist() == [0.5]
    assert truth_of_best(scores, np.array([[0.0, 1.0]])).tolist() == [0.5]


def test_the_best_is_the_mean_of_those_that_share_the_highest_score():
    found = truth_of_best(
        np.array([[3.0, 7.0, 7.0], [1.0, 0.0, -1.0]]), np.array([[9.0, 2.0, 5.0], [4.0, 8.0, 8.0]])
    )
    assert found.tolist() == [3.5, 4.0]


def test_the_gain_is_what_the_best_has_over_the_mean():
    ranked = rank(np.array([[3.0, 7.0, 5.0]] * 2), np.array([[0.0, 0.9, 0.3]] * 2), np.ones((1, 2, 3)))
    assert ranked.gain.mean == pytest.approx(0.5)
    assert ranked.auc is not None
    assert ranked.auc.mean == 1.0


def test_without_anything_given_it_is_spearmans_correlation():
    scores, truth = np.array([[1.0, 2.0, 3.0, 4.0, 5.0]]), np.array([[2.0, 1.0, 4.0, 3.0, 5.0]])
    found = partial_rank_correlation(scores, truth, np.zeros((1, 1, 5)))
    # 1 - 6 * sum of squared rank differences / (n (n^2 - 1)) = 1 - 6 * 4 / 120
    assert found.mean == pytest.approx(0.8)


def test_the_partial_correlation_is_the_textbooks():
    random = np.random.default_rng(0)
    values = random.permuted(np.tile(np.arange(7.0), (3, 1)), axis=1)
    scores, truth, given = values[0][None], values[1][None], values[2][None]
    r = np.corrcoef(values)
    expected = (r[0, 1] - r[0, 2] * r[1, 2]) / np.sqrt((1 - r[0, 2] ** 2) * (1 - r[1, 2] ** 2))
    assert partial_rank_correlation(scores, truth, given[None]).mean == pytest.approx(expected)


def test_a_score_that_is_only_length_has_nothing_left():
    random = np.random.default_rng(1)
    length = random.integers(3, 40, (11, 8)).astype(float)
    noise = random.normal(size=(11, 8))
    truth = length + 30 * noise
    given = np.stack([length, noise[:, ::-1]])
    assert rank(length, truth, given).auc.mean > 0.55
    assert partial_rank_correlation(2 * length + 1, truth, given).as_dict() == {
        "mean": 0,
        "low": 0,
        "high": 0,
    }
    beyond = partial_rank_correlation(noise, truth, given)
    assert beyond.low > 0.5
    assert beyond.low < beyond.mean < beyond.high


def test_a_prompt_without_pairs_does_not_count_for_the_auc():
    ranked = rank(np.array([[1.0, 2.0], [1.0, 2.0]]), np.array([[0.0, 1.0], [3.0, 3.0]]), np.zeros((1, 2, 2)))
    assert ranked.auc is not None
    assert ranked.auc.mean == 1.0
    assert ranked.gain.mean == 0.25
