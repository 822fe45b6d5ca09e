"""Weights from pairs."""

import math

import numpy as np
import pytest

from cagsr.config.schema import Term
from cagsr.rewards.calibration import Pairs, agreement, calibrated_terms, cross_validated, fit, refine


def pairs_of(differences, prompts=None, kinds=None):
    differences = np.array(differences, float)
    n = len(differences)
    return Pairs(
        differences,
        np.arange(n) if prompts is None else np.array(prompts),
        np.array(["one"] * n if kinds is None else kinds),
        np.ones(differences.shape[1]),
    )


def made(seed=0, n=211, weights=(2.0, 0.0, 1.0, -1.0, 0.0)):
    """Pairs whose order a logistic model with these weights decides; column 4 is 0 throughout."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, 5)) * [1, 1, 3, 1, 0]
    right = random.random(n) < 1 / (1 + np.exp(-x @ np.array(weights)))
    return pairs_of(np.where(right[:, None], x, -x), prompts=np.arange(n) // 3)


def loss(weights, pairs, ridge):
    return np.log1p(np.exp(-pairs.differences @ weights)).mean() + ridge / 2 * (weights**2).sum()


def test_one_signal_has_the_weight_where_the_derivative_is_0():
    # Three pairs of four in the right order, all differences 1: the optimum solves p - 3/4 + ridge w = 0.
    found = fit(pairs_of([[1.0], [1.0], [1.0], [-1.0]]), ridge=0.01)[0]
    assert 1 / (1 + math.exp(-found)) == pytest.approx(0.75 - 0.01 * found, abs=1e-6)


def test_no_weight_is_negative_and_the_rest_is_the_best_there_is():
    pairs = made()
    found = fit(pairs)
    assert (found >= 0).all()
    assert found[3] == 0
    assert found[4] == 0
    assert 0.7 < found[0] < 3
    assert 0.3 < found[2] < 2
    best = loss(found, pairs, 0.01)
    for column in range(4):
        for step in (-1e-3, 1e-3):
            moved = found.copy()
            moved[column] = max(0, moved[column] + step)
            assert loss(moved, pairs, 0.01) >= best - 1e-9


def test_the_unit_of_a_column_does_not_matter():
    pairs = made()
    unit = np.array([10, 1, 0.1, 7, 1])
    scaled = Pairs(pairs.differences * unit, pairs.prompts, pairs.kinds, pairs.spreads * unit)
    np.testing.assert_allclose(fit(scaled) * unit, fit(pairs), atol=1e-6)


def test_a_signal_that_varies_much_by_itself_gets_less_than_one_that_does_not():
    pairs = pairs_of([[1.0, 1.0]] * 5 + [[-1.0, -1.0]])
    noisy = Pairs(pairs.differences, pairs.prompts, pairs.kinds, np.array([1.0, 3.0]))
    quiet, loud = fit(noisy)
    # Both push alike, so the ridge divides the weight by the squares of the spreads.
    assert quiet / loud == pytest.approx(9, rel=1e-4)


def test_every_kind_counts_the_same_however_many_pairs_it_has():
    few = pairs_of([[1.0, 0.0], [0.0, 1.0], [-0.5, 0.0]], kinds=["a", "b", "a"])
    many = pairs_of([[1.0, 0.0], [-0.5, 0.0]] * 5 + [[0.0, 1.0]], kinds=["a"] * 10 + ["b"])
    np.testing.assert_allclose(fit(few), fit(many), atol=1e-6)


def test_separable_pairs_have_finite_weights():
    found = fit(pairs_of([[1.0, 0.5]] * 7))
    assert np.isfinite(found).all()
    assert (found > 0).all()


def test_few_labels_hardly_move_the_weights_and_many_do():
    start = np.array([1.0, 1.0])
    against = [[-1.0, 1.0]]
    assert refine(start, pairs_of(np.zeros((0, 2)))).tolist() == [1.0, 1.0]
    moved = [refine(start, pairs_of(against * n)) for n in (2, 20, 500)]
    firsts = [float(weights[0]) for weights in moved]
    assert 1 > firsts[0] > firsts[1] > firsts[2] >= 0
    assert firsts[0] > 0.85
    assert firsts[2] < 0.2


def test_agreement_counts_a_tie_as_half():
    assert agreement(np.array([1.0, 0.0]), pairs_of([[2.0, 0], [-1.0, 0], [0.0, 5]])).tolist() == [1, 0, 0.5]


def test_held_out_agreement_is_with_prompts_that_were_not_fitted():
    # A column that tells only which prompt it is: worthless on other prompts, perfect on its own.
    n = 40
    differences = np.eye(n)
    fitted = cross_validated(pairs_of(differences))
    assert fitted.held_out.mean == 0.5
    assert (fitted.weights > 0).all()
    honest = cross_validated(made(n=600))
    assert 0.75 < honest.held_out.mean < 1
    assert honest.held_out.low < honest.held_out.mean < honest.held_out.high
    assert honest.by_kind == {"one": pytest.approx(honest.held_out.mean, abs=0.01)}


def test_with_a_prior_the_folds_are_refined_from_it():
    against = pairs_of([[-1.0, 0.1]] * 9)
    fitted = cross_validated(against, prior=np.array([0.1, 0.2]))
    assert fitted.weights == pytest.approx(refine(np.array([0.1, 0.2]), against))


def test_one_prompt_cannot_be_held_out():
    with pytest.raises(ValueError, match="at least 2 prompts"):
        cross_validated(pairs_of([[1.0]] * 3, prompts=[5, 5, 5]))
    with pytest.raises(ValueError, match="no pairs"):
        fit(pairs_of(np.zeros((0, 2))))


TERMS = [
    Term("coverage", options={"gate": True}),
    Term("surprise"),
    Term("repetition", weight=5.0, standardise="none"),
    Term("unfinished", weight=1.5, standardise="none"),
]


def test_the_largest_weight_is_1_and_what_decides_next_to_nothing_is_left_out():
    differences = np.array([[1.0, 1.0, 0.1, 0.0], [-1.0, 1.0, 0.1, 0.0]])
    found = calibrated_terms(TERMS, np.array([4.0, 0.07, 8.0, 0.0]), differences)
    assert found == [
        Term("coverage", weight=0.5, options={"gate": True}),
        Term("repetition", weight=1.0, standardise="none"),
        Term("unfinished", weight=1.5, standardise="none"),
    ]


def test_where_no_signal_orders_the_pairs_it_is_said():
    with pytest.raises(ValueError, match="no signal orders the pairs"):
        calibrated_terms(TERMS, np.zeros(4), np.ones((2, 4)))
