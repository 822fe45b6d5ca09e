"""Differences, corrected tests and scores at equal length, by hand and by enumeration."""

import numpy as np
import pytest

from cagsr.evaluation.paired_differences import compared, length_matched
from cagsr.metrics.bootstrap import holm, p_value


def test_holm_multiplies_the_smallest_p_by_the_family_and_never_lets_a_larger_p_become_smaller():
    # By hand: .01 * 3, .02 * 2, max(.04, .03 * 1)
    corrected = holm({"b": 0.02, "a": 0.01, "c": 0.03})
    assert corrected == pytest.approx({"b": 0.04, "a": 0.03, "c": 0.04})
    assert list(corrected) == ["b", "a", "c"]


def test_holm_never_exceeds_1():
    assert holm({"a": 0.6, "b": 0.9}) == {"a": 1.0, "b": 1.0}


def test_the_p_value_of_a_difference_that_every_prompt_has_is_the_smallest_there_is():
    before = np.zeros(13)
    assert p_value(before + 1, before, resamples=999) == pytest.approx(2 / 1000)


def test_the_p_value_of_no_difference_is_1():
    assert p_value(np.ones(7), np.ones(7)) == 1.0


def test_the_p_value_agrees_with_the_exact_resampling_of_three_prompts():
    # Mean difference of 27 equally likely resamples of (-1, 1, 2): at or below 0 are those with sum <= 0.
    moved = np.array([-1.0, 1.0, 2.0])
    resamples = np.array([[a, b, c] for a in moved for b in moved for c in moved]).mean(1)
    exact = 2 * min((resamples <= 0).mean(), (resamples >= 0).mean())
    assert p_value(moved, np.zeros(3), resamples=20_000) == pytest.approx(exact, abs=0.02)


def test_differences_are_paired_by_seed_where_both_have_seeds_and_with_the_one_base_where_not():
    base = {"quality": np.array([[1.0, 2.0, 3.0, 5.0, 7.0]])}
    better = {"quality": base["quality"] + np.array([[1.0], [3.0]])}
    control = {"quality": base["quality"] + np.array([[0.5], [2.5]])}
    summary = compared({"base": base, "better": better, "control": control}, ["base", "control"])
    assert summary["differences"]["better-base"]["quality"]["mean"] == pytest.approx(2.0)
    paired = summary["differences"]["better-control"]["quality"]
    assert (paired["mean"], paired["low"], paired["high"]) == pytest.approx((0.5, 0.5, 0.5))
    assert summary["differences"]["base-control"]["quality"]["mean"] == pytest.approx(-1.5)
    assert "base-base" not in summary["differences"]


def test_a_difference_is_the_same_in_both_directions_though_one_side_has_a_single_seed():
    base = {"quality": np.linspace(0.0, 1.0, 13)}
    seeds = {"quality": np.linspace(0.0, 1.0, 13) + np.array([[-0.3], [0.0], [0.25]])}
    found = compared({"base": base, "control": seeds}, ["base", "control"])["differences"]
    one, other = found["control-base"]["quality"], found["base-control"]["quality"]
    assert (one["low"], one["high"]) == pytest.approx((-other["high"], -other["low"]))
    assert one["p"] == pytest.approx(other["p"])
    assert one["high"] - one["low"] > 0.3


def test_the_family_of_a_correction_is_all_systems_against_one_other_in_one_metric():
    base = {"quality": np.zeros(13)}
    systems = {"base": base, "up": {"quality": np.ones(13)}, "same": {"quality": np.zeros(13)}}
    found = compared(systems, ["base"])["differences"]
    assert found["up-base"]["quality"]["p_holm"] == pytest.approx(2 * found["up-base"]["quality"]["p"])
    assert found["same-base"]["quality"]["p_holm"] == 1.0


def test_a_metric_that_only_one_of_two_systems_has_is_not_compared():
    systems = {"base": {"quality": np.zeros(5)}, "other": {"judge": np.ones(5), "quality": np.ones(5)}}
    found = compared(systems, ["base"])
    assert list(found["differences"]["other-base"]) == ["quality"]
    assert list(found["systems"]["other"]) == ["judge", "quality"]


def test_a_score_at_equal_length_counts_the_prompts_answered_at_about_the_base_length_only():
    # Eleven prompts of nearly the base's length gain 1, two that became far longer gain 100.
    base = {"length": np.full(13, 20.0), "quality": np.zeros(13)}
    longer = {
        "length": np.array([21.0] * 11 + [60.0] * 2),
        "quality": np.array([1.0] * 11 + [100.0] * 2),
    }
    found = length_matched(longer, base, tolerance=0.1)
    assert found["prompts"] == pytest.approx(11 / 13)
    assert found["quality"]["mean"] == pytest.approx(1.0)
    assert "length" not in found


def test_a_prompt_matches_only_if_its_length_matches_with_every_seed():
    base = {"length": np.full(13, 20.0), "quality": np.zeros(13)}
    seeds = {"length": np.array([[10.0] * 13, [30.0] * 13]), "quality": np.ones((2, 13))}
    assert length_matched(seeds, base) == {"prompts": 0.0}


def test_fewer_than_ten_matching_prompts_give_no_score():
    base = {"length": np.full(13, 20.0), "quality": np.zeros(13)}
    longer = {"length": np.full(13, 40.0), "quality": np.ones(13)}
    assert length_matched(longer, base) == {"prompts": 0.0}
