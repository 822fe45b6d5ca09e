import numpy as np
import pytest

from cagsr.metrics import METRICS, slot_metrics
from cagsr.tasks import Check

CHECKS = [Check(5, 0, 0, 0), Check(5, 2, 1, 0), Check(4, 0, 0, 2), Check(7, 7, 0, 0)]


def test_every_metric_equals_the_value_by_hand():
    found = slot_metrics(CHECKS, [31, 17, 29, 0])
    assert tuple(found) == METRICS
    expected = {
        "slot_error_rate": [0, 0.6, 0.5, 1],
        "coverage": [1, 0.6, 1, 0],
        "perfect": [1, 0, 1, 0],
        "clean": [1, 0, 0, 0],
        "hallucination": [0, 0.2, 0, 0],
        "repetition": [0, 0, 0.5, 0],
        "length": [31, 17, 29, 0],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, err_msg=name)


def test_the_slot_error_rate_is_the_sum_of_its_parts():
    found = slot_metrics(CHECKS, [1, 1, 1, 1])
    parts = 1 - found["coverage"] + found["hallucination"] + found["repetition"]
    np.testing.assert_allclose(found["slot_error_rate"], parts)


def test_wrong_values_are_told_where_every_check_tells_them():
    told = [Check(5, 1, 2, 0, contradicted=1), Check(0, 0, 1, 0, contradicted=0)]
    np.testing.assert_allclose(slot_metrics(told, [1, 1])["wrong_values"], [0.2, 0])
    assert "wrong_values" not in slot_metrics([*told, Check(5, 1, 2, 0)], [1, 1, 1])


def test_a_check_without_a_length_is_refused():
    with pytest.raises(ValueError, match="4 checks but 3 lengths"):
        slot_metrics(CHECKS, [1, 2, 3])
