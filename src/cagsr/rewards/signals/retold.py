"""Penalty for saying a part of the prompt more than once, even in other words."""

__all__ = ["retold"]

import torch
from pydantic import NonNegativeFloat, NonNegativeInt
from torch import Tensor
from torch.nn.functional import pad

from cagsr.rewards import segments
from cagsr.rewards.signals.ingredients import text_mask
from cagsr.types import Evidence


def retold(
    evidence: Evidence,
    *,
    explained: NonNegativeFloat = 1.0,
    threshold: float = 4.0,
    gap: NonNegativeInt = 3,
) -> Tensor:
    """[N] ``-(1 / J) sum_j (sum_m sigmoid(D_jm - threshold) - max_m sigmoid(D_jm - threshold))`` over mentions m.

    A mention of segment j is a run of response tokens each of which it explains by more than ``explained`` nats
    (`rewards.segments.knockout`), with at most ``gap`` other tokens between two of them; D_jm is the greatest in it.
    The clearest mention is free, every other costs up to one segment's share. The end-of-sequence token is left
    out. One pass of the observer a segment, none beside those of `knockout`.

    Range (-inf, 0]; higher is better; 0 for an empty response and where a prompt has no segment.
    """
    explains_NTJ = segments.knockout(evidence) * text_mask(evidence.rollout)[..., None]
    count_P = segments.segments(evidence).any(-1).sum(-1)
    if explains_NTJ.shape[1] == 0:
        return evidence.salience.new_zeros(len(explains_NTJ))
    mention_NTJ = _mentions(explains_NTJ > explained, gap)
    clear = torch.stack(
        [
            (explains_NTJ.where(mention_NTJ == m, -torch.inf).amax(1) - threshold).sigmoid()
            for m in range(1, int(mention_NTJ.max()) + 1)
        ]
        or [torch.zeros_like(explains_NTJ[:, 0])]
    )
    again_N = (clear.sum(0) - clear.amax(0)).sum(-1)
    return -again_N / evidence.per_row(count_P).clamp(min=1)


def _mentions(on_NTJ: Tensor, gap: int) -> Tensor:
    """[N T J] the number of the mention that a token belongs to, counted from 1; 0 where it is in none."""
    before = torch.zeros_like(on_NTJ)
    for distance in range(1, min(gap + 1, on_NTJ.shape[1] - 1) + 1):
        before |= pad(on_NTJ, (0, 0, distance, 0))[:, :-distance]
    return (on_NTJ & ~before).cumsum(1) * on_NTJ
