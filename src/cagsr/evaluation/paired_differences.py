"""Comparison of systems: means, paired differences, corrected tests, differences at equal length."""

__all__ = ["compared", "length_matched"]

from collections.abc import Mapping
from typing import Any

import numpy as np

from cagsr.metrics.bootstrap import difference, holm, interval, p_value

Values = Mapping[str, np.ndarray]
"""Metric name -> [seeds, prompts] of one system; the same prompts in the same order for all systems."""


def compared(
    systems: Mapping[str, Values], against: list[str], *, level: float = 0.95, length_tolerance: float = 0.1
) -> dict[str, Any]:
    """Comparison of systems: ``systems``, ``differences`` and ``length_matched`` of a summary.

    systems         {name: {metric: {mean, low, high}}}, intervals over prompts and seeds; None at their ends for a
                    single prompt
    differences     {"name-other": {metric: {mean, low, high, p, p_holm}}} for each other of ``against``; paired by
                    prompt (and by seed, where both have as many). Holm's family is all systems against that other,
                    in one metric.
    length_matched  {"name-base": {...}}, see `length_matched`; base is the first of ``against``, which may be empty
    """
    return {
        "systems": {
            name: {metric: interval(value, level=level).as_dict() for metric, value in values.items()}
            for name, values in systems.items()
        },
        "differences": {
            f"{name}-{other}": metrics
            for other in against
            for name, metrics in _differences(systems, other, level).items()
        },
        "length_matched": {
            f"{name}-{base}": length_matched(values, systems[base], length_tolerance, level)
            for base in against[:1]
            for name, values in systems.items()
            if name != base and "length" in values
        },
    }


def _differences(
    systems: Mapping[str, Values], other: str, level: float
) -> dict[str, dict[str, dict[str, float | None]]]:
    found: dict[str, dict[str, dict[str, float | None]]] = {name: {} for name in systems if name != other}
    for metric, before in systems[other].items():
        pairs = {name: _aligned(systems[name][metric], before) for name in found if metric in systems[name]}
        p_values = {name: p_value(*pair) for name, pair in pairs.items()}
        corrected = holm(p_values)
        for name, pair in pairs.items():
            found[name][metric] = {
                **difference(*pair, level=level).as_dict(),
                "p": p_values[name],
                "p_holm": corrected[name],
            }
    return found


def _aligned(after: np.ndarray, before: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both arrays by seed where they have the same seeds or one has a single one; else means over seeds, by prompt."""
    after, before = np.atleast_2d(after), np.atleast_2d(before)
    if 1 in (len(after), len(before)) or len(after) == len(before):
        return after, before
    return after.mean(0, keepdims=True), before.mean(0, keepdims=True)


def length_matched(
    values: Values, base: Values, tolerance: float = 0.1, level: float = 0.95
) -> dict[str, Any]:
    """Mean difference to the base on the prompts that both answer at about the same length.

    {"prompts": share of all, metric: {mean, low, high}}; matched are the prompts whose length differs from the
    base's by at most ``tolerance`` of it, with every seed. What a system gains only by writing more is not here. The
    metrics are left out where fewer than ten prompts match.
    """
    length, base_length = np.atleast_2d(values["length"]), np.atleast_2d(base["length"]).mean(0)
    matched = (np.abs(length - base_length) <= tolerance * base_length).all(0)
    result: dict[str, Any] = {"prompts": float(matched.mean())}
    if matched.sum() < 10:
        return result
    for metric, value in values.items():
        if metric in base and metric != "length":
            after, before = _aligned(value, base[metric])
            result[metric] = difference(after[:, matched], before[:, matched], level=level).as_dict()
    return result
