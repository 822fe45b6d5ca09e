"""Coherence, as the share of text that was said before."""

__all__ = ["repetition"]

from pydantic import PositiveInt
from torch import Tensor

from cagsr.rewards.signals.ingredients import text_mask
from cagsr.types import Evidence


def repetition(evidence: Evidence, *, n: PositiveInt = 3) -> Tensor:
    """[N] ``-(1 - distinct n-grams / n-grams)`` of the response's token ids, end-of-sequence left out.

    Range (-1, 0]; higher is better. A response of fewer than n tokens repeats nothing: 0.

    Source: arXiv 2502.10482, the repetition penalty.
    """
    ids_of_rows = evidence.rollout.response_ids.tolist()
    lengths = text_mask(evidence.rollout).sum(-1).tolist()
    values = []
    for ids, length in zip(ids_of_rows, lengths, strict=True):
        grams = [tuple(ids[start : start + n]) for start in range(length - n + 1)]
        values.append(len(set(grams)) / len(grams) - 1 if grams else 0.0)
    return evidence.salience.new_tensor(values)
