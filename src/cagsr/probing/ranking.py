"""How well a number ranks the candidates of a prompt by another number, prompt by prompt.

Everything is compared within a prompt: what one prompt's candidates have in common tells nothing about a reward.
"""

__all__ = ["Ranked", "order", "partial_rank_correlation", "rank", "truth_of_best", "within_prompt_auc"]

from dataclasses import dataclass

import numpy as np

from cagsr.metrics.bootstrap import Interval, interval

# Relative to the values: the same response measured in another batch differs by float32 rounding.
ROUNDING = 1e-6
# What is left of a variable's variance once it is explained by others, below which it is rounding.
NOTHING_LEFT = 1e-9


@dataclass(frozen=True)
class Ranked:
    """How a score ranks a prompt's candidates by one truth.

    auc      `within_prompt_auc` over the prompts whose candidates differ; None where none do
    gain     truth of the best of K by the score, less the mean of the K
    partial  rank correlation within prompts, given length and mean log-probability
    """

    auc: Interval | None
    gain: Interval
    partial: Interval


def rank(scores_PK: np.ndarray, truth_PK: np.ndarray, given_GPK: np.ndarray) -> Ranked:
    """Truth is higher where a candidate is better. Intervals resample prompts."""
    auc = within_prompt_auc(scores_PK, truth_PK)
    differ = np.isfinite(auc)
    return Ranked(
        auc=interval(auc[differ]) if differ.any() else None,
        gain=interval(truth_of_best(scores_PK, truth_PK) - truth_PK.mean(-1)),
        partial=partial_rank_correlation(scores_PK, truth_PK, given_GPK),
    )


def within_prompt_auc(scores_PK: np.ndarray, truth_PK: np.ndarray) -> np.ndarray:
    """[P] share of a prompt's pairs of candidates whose better one, by truth, has the higher score; ties count half.

    Pairs of equal truth do not count; NaN for a prompt that has no other. In [0, 1]; .5 is chance.
    """
    better = order(truth_PK) > 0
    pairs = better.sum((-1, -2))
    right = ((order(scores_PK) + 1) / 2 * better).sum((-1, -2))
    return np.divide(right, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)


def truth_of_best(scores_PK: np.ndarray, truth_PK: np.ndarray) -> np.ndarray:
    """[P] truth of the candidate with the highest score; its mean over those that share the highest score."""
    highest = (order(scores_PK) >= 0).all(-1)
    return (truth_PK * highest).sum(-1) / highest.sum(-1)


def partial_rank_correlation(
    scores_PK: np.ndarray,
    truth_PK: np.ndarray,
    given_GPK: np.ndarray,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Correlation of the ranks within prompts of scores and truth, with that of ``given`` taken out of both.

    Ranks are centred in each prompt and pooled; what ``given`` predicts linearly of them is subtracted. In [-1, 1];
    exactly 0 where nothing is left of either, as of a score that is itself given. The interval resamples prompts.

    Source: Spearman's rank correlation; partial correlation by least squares.
    """
    ranks = np.stack([order(values).sum(-1) / 2 for values in (scores_PK, truth_PK, *given_GPK)], -1)
    products_PVV = np.einsum("pkv,pkw->pvw", ranks, ranks)
    drawn = _draws(len(products_PVV), resamples, seed)
    sums_RVV = np.einsum("rp,pvw->rvw", np.concatenate([np.ones((1, drawn.shape[1])), drawn]), products_PVV)
    mean, *resampled = _partial(sums_RVV)
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(mean), float(low), float(high))


def _draws(prompts: int, resamples: int, seed: int) -> np.ndarray:
    """[resamples, prompts]: how often each prompt is drawn when as many are, with replacement."""
    return (
        np.random.default_rng(seed)
        .multinomial(prompts, np.full(prompts, 1 / prompts), resamples)
        .astype(float)
    )


def order(values: np.ndarray) -> np.ndarray:
    """[... K] -> [... K K]: 1 where the row's candidate is above the column's, -1 below, 0 for a tie."""
    values = np.asarray(values, dtype=float)
    apart = values[..., :, None] - values[..., None, :]
    tolerance = ROUNDING * np.abs(values).max(-1)[..., None, None]
    return np.sign(np.where(np.abs(apart) <= tolerance, 0.0, apart))


def _partial(sums_RVV: np.ndarray) -> np.ndarray:
    """[R] the correlation of the first two variables given the others, from sums of products of centred ranks."""
    own, cross, others = sums_RVV[:, :2, :2], sums_RVV[:, :2, 2:], sums_RVV[:, 2:, 2:]
    left = own - cross @ np.linalg.pinv(others, hermitian=True) @ cross.transpose(0, 2, 1)
    variances = np.einsum("rvv->rv", left)
    has_both = (variances > NOTHING_LEFT * np.einsum("rvv->rv", own)).all(-1)
    scale = np.sqrt(np.where(has_both, variances.clip(min=0).prod(-1), 1.0))
    return np.where(has_both, left[:, 0, 1] / scale, 0.0)
