"""Means and paired differences with bootstrap intervals, over prompts and over seeds.

Source: Efron, Tibshirani, An Introduction to the Bootstrap, 1993, the percentile interval (chapter 13).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its interval."""

    mean: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def interval(values: np.ndarray, *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean of ``values`` [prompts] or [seeds, prompts] with its percentile bootstrap interval.

    With several seeds both are resampled, with the same prompts for every seed drawn: all seeds are evaluated
    on the same prompts, so a prompt's luck is shared by them.

    Raises ValueError for an empty array, another number of axes, or values that are not finite.
    """
    table = np.atleast_2d(np.asarray(values, dtype=float))
    if table.ndim != 2 or table.size == 0:
        raise ValueError(f"expected values [prompts] or [seeds, prompts], got shape {np.shape(values)}")
    if not np.isfinite(table).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(table))} of {table.size} values are not finite")
    seeds, prompts = table.shape
    random = np.random.default_rng(seed)
    # how often each seed and each prompt is drawn: the mean of a resample is then a product of small matrices
    drawn_seeds, drawn_prompts = _draws(random, seeds, resamples), _draws(random, prompts, resamples)
    means = np.einsum("rp,sp,rs->r", drawn_prompts, table, drawn_seeds, optimize=True) / table.size
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(table.mean()), float(low), float(high))


def _draws(random: np.random.Generator, size: int, resamples: int) -> np.ndarray:
    """[resamples, size]: how often each of ``size`` things is drawn when ``size`` are, with replacement."""
    drawn = random.integers(size, size=(resamples, size)) + size * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * size).reshape(resamples, size)


def difference(
    after: np.ndarray, before: np.ndarray, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Mean of ``after - before``, paired: entry by entry the same prompt (and seed).

    Either may be [prompts] where the other is [seeds, prompts], as when several trained models are compared
    with the one base they started from. Raises ValueError when the numbers of prompts differ.
    """
    after, before = np.asarray(after, dtype=float), np.asarray(before, dtype=float)
    if after.shape[-1:] != before.shape[-1:]:
        raise ValueError(f"shapes {after.shape} and {before.shape} do not pair: other numbers of prompts")
    return interval(after - before, level=level, resamples=resamples, seed=seed)


def summarise(
    systems: Mapping[str, Mapping[str, np.ndarray]],
    pairs: Sequence[tuple[str, str]] = (),
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """The ``systems`` and ``differences`` of a summary: for each metric {"mean", "low", "high"}.

    ``systems`` maps a name to metric arrays [prompts] or [seeds, prompts]; ``pairs`` are (after, before),
    reported as "after-before" for the metrics that both have.
    """
    options: dict[str, Any] = {"level": level, "resamples": resamples, "seed": seed}
    return {
        "systems": {
            name: {metric: interval(values, **options).as_dict() for metric, values in metrics.items()}
            for name, metrics in systems.items()
        },
        "differences": {
            f"{after}-{before}": {
                metric: difference(values, systems[before][metric], **options).as_dict()
                for metric, values in systems[after].items()
                if metric in systems[before]
            }
            for after, before in pairs
        },
    }
