"""Calibration: weights of a reward's terms, fitted to pairs of responses whose order is known.

Pairs are made without labels (`cagsr.data.corruptions`) or given by people. Each is a row of differences, better minus
worse, in the units that training measures a term in. The weights are those of a logistic regression without
intercept, and none is negative: a signal that seems to point the other way on few pairs is left out, not turned.
"""

__all__ = ["Fit", "Pairs", "agreement", "calibrated_terms", "cross_validated", "fit", "refine"]

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cagsr.config.schema import Term
from cagsr.metrics.bootstrap import Interval, interval

ITERATIONS = 3000
# The fit has converged when weights, in units of their columns, move less than this.
ARRIVED = 1e-8
# Ridge penalty: small, and enough that separable pairs have finite weights.
RIDGE = 0.01
# People's pairs move the label-free weights as if those rested on so many pairs.
PRIOR_PAIRS = 10.0
FOLDS = 5
SMALLEST_SHARE = 0.02


@dataclass(frozen=True)
class Pairs:
    """Signal differences of pairs, better minus worse, one row a pair.

    differences  [n C] each signal as the reward measures it: raw, or in spreads where it is standardised
    prompts      [n]   which prompt a pair belongs to
    kinds        [n]   what made the worse one worse; each kind counts the same in a fit
    spreads      [C]   > 0, spread of each signal among responses that were not corrupted
    """

    differences: np.ndarray
    prompts: np.ndarray
    kinds: np.ndarray
    spreads: np.ndarray

    def where(self, chosen: np.ndarray) -> "Pairs":
        """The pairs at which ``chosen`` is True."""
        return Pairs(self.differences[chosen], self.prompts[chosen], self.kinds[chosen], self.spreads)

    def __len__(self) -> int:
        return len(self.differences)


@dataclass(frozen=True)
class Fit:
    """Fitted weights [C] >= 0 of the signals in their units, and the share of held-out pairs ordered rightly."""

    weights: np.ndarray
    held_out: Interval
    by_kind: dict[str, float]


def fit(pairs: Pairs, *, ridge: float = RIDGE) -> np.ndarray:
    """[C] weights >= 0 that put the pairs in order. Each kind of pair counts the same, however many it has.

    Minimises ``mean log(1 + exp(-w d)) + ridge / 2 |w s|^2`` with s the spreads: a weight costs what it would add to
    the reward's variation among ordinary responses, so a column's unit does not matter, and one that hardly differs
    between better and worse is not blown up. A column that is 0 throughout gets 0. Raises ValueError without pairs.
    """
    shares = np.zeros(len(pairs))
    kinds = np.unique(pairs.kinds)
    for kind in kinds:
        shares[pairs.kinds == kind] = 1 / (len(kinds) * np.count_nonzero(pairs.kinds == kind))
    return _logistic(pairs, shares, ridge, np.zeros(pairs.differences.shape[1]))


def refine(weights: np.ndarray, pairs: Pairs, *, prior_pairs: float = PRIOR_PAIRS) -> np.ndarray:
    """[C] weights >= 0 of few labelled pairs, with ``weights`` as their prior.

    The ridge pulls towards ``weights`` with the strength of ``prior_pairs`` pairs, so that without pairs nothing
    moves and with hundreds the labels decide.
    """
    if not len(pairs):
        return weights
    shares = np.full(len(pairs), 1 / len(pairs))
    return _logistic(pairs, shares, prior_pairs / len(pairs), weights)


def _logistic(pairs: Pairs, shares: np.ndarray, ridge: float, centre: np.ndarray) -> np.ndarray:
    """Logistic regression by accelerated projected gradient; convex, with a step of one over the Lipschitz constant."""
    if not len(pairs):
        raise ValueError("no pairs to fit weights to")
    scales = pairs.spreads
    x, start = pairs.differences / scales, centre * scales
    step = 1 / (0.25 * np.linalg.norm(np.sqrt(shares)[:, None] * x, 2) ** 2 + ridge)
    weights, ahead, momentum = start.copy(), start.copy(), 1.0
    for _ in range(ITERATIONS):
        wrong = shares / (1 + np.exp(np.clip(x @ ahead, -500, 500)))
        moved = np.maximum(ahead + step * (x.T @ wrong - ridge * (ahead - start)), 0)
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = moved + (momentum - 1) / following * (moved - weights)
        arrived = (
            np.abs(moved - weights).max(initial=0) < ARRIVED
            and np.abs(ahead - moved).max(initial=0) < ARRIVED
        )
        weights, momentum = moved, following
        if arrived:
            break
    return weights / scales


def agreement(weights: np.ndarray, pairs: Pairs) -> np.ndarray:
    """[n] 1 where the weighted differences put a pair in its order, 0 where they do not, 0.5 for a tie."""
    margins = pairs.differences @ weights
    return (margins > 0) + 0.5 * (margins == 0)


def cross_validated(
    pairs: Pairs, *, folds: int = FOLDS, prior: np.ndarray | None = None, seed: int = 0
) -> Fit:
    """Weights from all pairs, and the agreement of weights from other prompts' pairs with each prompt's pairs.

    ``held_out`` is the mean over prompts, each kind of pair counting the same within a prompt, with its bootstrap
    interval over prompts. With ``prior`` the weights are refined from it (`refine`), without they are fitted anew.
    Raises ValueError with fewer prompts than 2.
    """
    prompts = np.unique(pairs.prompts)
    if len(prompts) < 2:
        raise ValueError("cross-validation needs pairs of at least 2 prompts")
    right = np.zeros(len(pairs))
    for held in _folds(prompts, min(folds, len(prompts)), seed):
        out = np.isin(pairs.prompts, held)
        rest = pairs.where(~out)
        weights = fit(rest) if prior is None else refine(prior, rest)
        right[out] = agreement(weights, pairs.where(out))
    kinds = np.unique(pairs.kinds)
    of_prompts = [
        np.mean(
            [
                right[here & (pairs.kinds == kind)].mean()
                for kind in kinds
                if (here & (pairs.kinds == kind)).any()
            ]
        )
        for here in (pairs.prompts == prompt for prompt in prompts)
    ]
    return Fit(
        weights=fit(pairs) if prior is None else refine(prior, pairs),
        held_out=interval(np.array(of_prompts)),
        by_kind={str(kind): float(right[pairs.kinds == kind].mean()) for kind in kinds},
    )


def _folds(prompts: np.ndarray, folds: int, seed: int) -> Iterator[np.ndarray]:
    shuffled = np.random.default_rng(seed).permutation(prompts)
    return iter(np.array_split(shuffled, folds))


def calibrated_terms(terms: Sequence[Term], weights: np.ndarray, differences: np.ndarray) -> list[Term]:
    """The terms with the weights found, scaled so that the largest is 1, in their order.

    weights      [C]   for the signals as the reward measures them: raw, or standardised
    differences  [n C] in the same units: what a weight decides is the weight times the column's root mean square,
                       and a term that decides less than a fiftieth of what the first does is left out

    A term whose signal never differed keeps the weight it came with: the pairs say nothing of it. Raises ValueError
    where no signal orders the pairs.
    """
    decides = weights * np.sqrt((differences**2).mean(0))
    if decides.max() <= 0:
        raise ValueError("no signal orders the pairs: every weight is 0")
    kept = decides >= SMALLEST_SHARE * decides.max()
    scaled = weights / weights[kept].max()
    differs_C = (differences != 0).any(axis=0)
    return [
        term.model_copy(update={"weight": round(float(weight), 4)}) if differs else term
        for term, weight, is_kept, differs in zip(terms, scaled, kept, differs_C.tolist(), strict=True)
        if is_kept or not differs
    ]
