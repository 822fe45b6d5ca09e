"""Means and paired differences with bootstrap intervals, over prompts and over seeds.

Source: Efron, Tibshirani, An Introduction to the Bootstrap, 1993, the percentile interval (chapter 13).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its confidence interval; of a single prompt it is everything, from -inf to inf."""

    mean: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float | None]:
        """For JSON, which has no infinity: None at both ends where nothing limits the mean."""
        return {name: value if np.isfinite(value) else None for name, value in asdict(self).items()}


def interval(values: np.ndarray, *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean of ``values`` [prompts] or [seeds, prompts] with its percentile bootstrap interval.

    With several seeds both are resampled, with the same prompts for every seed drawn: all seeds are evaluated
    on the same prompts, so a prompt's luck is shared by them. A single prompt says nothing of others: resampling it
    would give an interval of width 0.

    Raises ValueError for an empty array, another number of axes, or values that are not finite.
    """
    table, means = _resampled_means(values, resamples, seed)
    if table.shape[1] == 1:
        return Interval(float(table.mean()), -np.inf, np.inf)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(table.mean()), float(low), float(high))


def p_value(after: np.ndarray, before: np.ndarray, *, resamples: int = 4000, seed: int = 0) -> float:
    """Paired two-sided p-value of "no difference", in [2 / (resamples + 1), 1]: by inverting the percentile interval.

    Twice the share of resampled mean differences on the rarer side of 0 (at 0 they count for both). With few seeds
    it is too small, as every bootstrap over few things is: it then speaks of these prompts more than of new seeds.
    1 for a single prompt, from which nothing follows. Raises ValueError as `difference` does.
    """
    moved = _paired(after, before)
    table, means = _resampled_means(moved, resamples, seed)
    if table.shape[1] == 1:
        return 1.0
    rarer = min(np.count_nonzero(means <= 0), np.count_nonzero(means >= 0))
    return float(min(1.0, 2 * (rarer + 1) / (resamples + 1)))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm-corrected p-values of a family of comparisons: one false finding among all has the stated chance.

    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure, 1979.
    """
    corrected: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        corrected[name] = largest
    return {name: corrected[name] for name in p_values}


def _resampled_means(values: np.ndarray, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """``values`` as [seeds, prompts], and the mean of each resample."""
    table = np.atleast_2d(np.asarray(values, dtype=float))
    if table.ndim != 2 or table.size == 0:
        raise ValueError(f"expected values [prompts] or [seeds, prompts], got shape {np.shape(values)}")
    if not np.isfinite(table).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(table))} of {table.size} values are not finite")
    drawn_seeds, drawn_prompts = _draws(*table.shape, resamples, seed)
    means = np.einsum("rp,sp,rs->r", drawn_prompts, table, drawn_seeds, optimize=True) / table.size
    return table, means


@lru_cache(maxsize=8)  # a comparison asks for the same draws for every metric of every system
def _draws(seeds: int, prompts: int, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """[resamples, seeds] and [resamples, prompts]: how often each is drawn in a bootstrap resample, with replacement.

    The mean of a resample is then a product of small matrices.
    """
    random = np.random.default_rng(seed)

    def drawn(size: int) -> np.ndarray:
        chosen = random.integers(size, size=(resamples, size)) + size * np.arange(resamples)[:, None]
        return np.bincount(chosen.ravel(), minlength=resamples * size).reshape(resamples, size).astype(float)

    return drawn(seeds), drawn(prompts)


def difference(after: np.ndarray, before: np.ndarray, *, level: float = 0.95) -> Interval:
    """Mean of ``after - before``, paired: entry by entry the same prompt (and seed).

    Either may be [prompts] where the other is [seeds, prompts], as when several trained models are compared
    with the one base they started from. Raises ValueError when the numbers of prompts differ.
    """
    return interval(_paired(after, before), level=level)


def _paired(after: np.ndarray, before: np.ndarray) -> np.ndarray:
    after, before = np.asarray(after, dtype=float), np.asarray(before, dtype=float)
    if after.shape[-1:] != before.shape[-1:]:
        raise ValueError(f"shapes {after.shape} and {before.shape} do not pair: other numbers of prompts")
    return after - before


def summarise(
    systems: Mapping[str, Mapping[str, np.ndarray]], pairs: Sequence[tuple[str, str]] = ()
) -> dict[str, Any]:
    """The ``systems`` and ``differences`` of a summary: for each metric {"mean", "low", "high"}.

    ``systems`` maps a name to metric arrays [prompts] or [seeds, prompts]; ``pairs`` are (after, before),
    reported as "after-before" for the metrics that both have.
    """
    return {
        "systems": {
            name: {metric: interval(values).as_dict() for metric, values in metrics.items()}
            for name, metrics in systems.items()
        },
        "differences": {
            f"{after}-{before}": {
                metric: difference(values, systems[before][metric]).as_dict()
                for metric, values in systems[after].items()
                if metric in systems[before]
            }
            for after, before in pairs
        },
    }
