"""Repetition penalty: share of repeated n-grams."""

__all__ = ["repeated_ngrams", "repetition"]

import torch
from pydantic import PositiveInt
from torch import Tensor

from cagsr.rewards.signals.ingredients import text_mask
from cagsr.types import Evidence, Rollout


def repetition(evidence: Evidence, *, n: PositiveInt = 3) -> Tensor:
    """[N] ``-(1 - distinct n-grams / n-grams)`` of the response's token ids, end-of-sequence left out.

    Range (-1, 0]; higher is better. A response of fewer than n tokens repeats nothing: 0.

    Source: arXiv 2502.10482, the repetition penalty.
    """
    return 0 - repeated_ngrams(evidence.rollout, n)  # and not minus: 0, not -0


def repeated_ngrams(rollout: Rollout, n: int = 3) -> Tensor:
    """[N] float32, share of each response's n-grams that stood in it before, in [0, 1); lower is better."""
    lengths = text_mask(rollout).sum(-1).tolist()
    shares = []
    for ids, length in zip(rollout.response_ids.tolist(), lengths, strict=True):
        grams = [tuple(ids[start : start + n]) for start in range(length - n + 1)]
        shares.append(1 - len(set(grams)) / len(grams) if grams else 0.0)
    return torch.tensor(shares, device=rollout.response_ids.device)
