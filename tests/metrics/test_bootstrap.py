import json

import numpy as np
import pytest

from cagsr.metrics import Interval, difference, interval, summarise
from cagsr.metrics.bootstrap import p_value


def test_the_interval_of_a_constant_is_a_point():
    assert interval(np.full(11, 0.25)) == Interval(0.25, 0.25, 0.25)


def test_the_interval_agrees_with_the_normal_one_for_many_prompts():
    values = np.random.default_rng(0).normal(3, 2, size=1009)
    found = interval(values)
    half = 1.96 * values.std() / np.sqrt(values.size)
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.02)
    assert found.high == pytest.approx(values.mean() + half, abs=0.02)


def test_the_interval_holds_the_truth_in_95_of_100_experiments():
    random = np.random.default_rng(1)
    samples = random.binomial(1, 0.3, size=(400, 101)).astype(float)
    found = [interval(sample, resamples=500, seed=number) for number, sample in enumerate(samples)]
    assert 0.92 <= np.mean([one.low <= 0.3 <= one.high for one in found]) <= 0.98


def test_the_interval_over_seeds_holds_the_truth_and_that_over_pooled_rows_does_not():
    random = np.random.default_rng(2)
    hierarchical, pooled = [], []
    for _ in range(200):
        table = random.normal(0, 1, size=(11, 1)) + random.normal(0, 1, size=(11, 101))
        hierarchical.append(interval(table, resamples=300))
        pooled.append(interval(table.ravel(), resamples=300))
    assert np.mean([one.low <= 0 <= one.high for one in hierarchical]) >= 0.85
    assert np.mean([one.low <= 0 <= one.high for one in pooled]) <= 0.5


def test_one_seed_as_a_table_equals_one_seed_as_a_row():
    values = np.random.default_rng(3).random(31)
    assert interval(values) == interval(values[None, :])


def test_a_seeded_interval_is_reproducible_and_another_seed_differs():
    values = np.random.default_rng(4).random(31)
    assert interval(values, seed=5) == interval(values, seed=5)
    assert interval(values, seed=5) != interval(values, seed=7)


def test_a_paired_difference_is_narrower_than_its_parts():
    random = np.random.default_rng(5)
    before = random.normal(0, 5, size=101)
    after = before + 0.5 + random.normal(0, 0.1, size=101)
    found = difference(after, before)
    assert found.mean == pytest.approx((after - before).mean())
    assert found.low > 0.4
    assert found.high < 0.6


def test_a_difference_of_several_seeds_with_one_base_pairs_by_prompt():
    base = np.array([1.0, 2.0, 3.0])
    trained = np.array([[2.0, 3.0, 4.0], [3.0, 4.0, 5.0]])
    found = difference(trained, base)
    assert (found.mean, found.low, found.high) == (1.5, 1.0, 2.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([]), "shape"),
        (np.zeros((2, 3, 5)), "shape"),
        (np.array([1.0, np.nan, np.inf]), "2 of 3 values are not finite"),
    ],
)
def test_values_that_have_no_mean_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        interval(values)


def test_unpaired_values_are_refused():
    with pytest.raises(ValueError, match="do not pair"):
        difference(np.zeros(5), np.zeros(7))


def test_a_summary_has_the_promised_shape_and_is_json():
    systems = {
        "base": {"coverage": np.array([0.5, 0.7, 0.6]), "length": np.array([3.0, 5.0, 7.0])},
        "cagsr": {"coverage": np.array([[0.9, 0.8, 1.0], [1.0, 0.9, 0.8]])},
    }
    found = summarise(systems, pairs=[("cagsr", "base")])
    assert json.loads(json.dumps(found)) == found
    assert found["systems"]["base"]["length"]["mean"] == 5
    assert set(found["systems"]["cagsr"]["coverage"]) == {"mean", "low", "high"}
    assert found["differences"]["cagsr-base"].keys() == {"coverage"}
    assert found["differences"]["cagsr-base"]["coverage"]["mean"] == pytest.approx(0.3)


def test_one_prompt_has_a_mean_and_no_interval_and_makes_no_difference_significant():
    found = interval(np.array([0.25]))
    assert found == Interval(0.25, -np.inf, np.inf)
    assert found.as_dict() == {"mean": 0.25, "low": None, "high": None}
    assert difference(np.array([[1.0], [3.0]]), np.array([0.5])).as_dict() == {
        "mean": 1.5,
        "low": None,
        "high": None,
    }
    assert p_value(np.array([1.0]), np.array([0.0])) == 1.0
