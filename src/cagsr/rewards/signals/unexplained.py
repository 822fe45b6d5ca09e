"""Penalty for tokens that are unlikely under the observer and that no part of the prompt explains."""

__all__ = ["unexplained"]

from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from cagsr.rewards import segments
from cagsr.types import Evidence


def unexplained(
    evidence: Evidence,
    *,
    threshold: NonNegativeFloat = 2.0,
    width: PositiveFloat = 2.0,
    explained: PositiveFloat = 2.0,
) -> Tensor:
    """[N] ``-(1 / J) sum_t clip((-log p(y_t) - threshold) / width, 0, 1) (1 - clip(max_j D[t, j] / explained, 0, 1))``.

    D[t, j], in nats, is what segment j of the prompt explains of token t (`cagsr.rewards.segments.knockout`) and J the
    number of segments, at least 1. A surprising word that says something of the prompt is free, one that comes from
    nowhere is charged as `surprise` charges it. One pass of the observer a segment.

    Range (-inf, 0]; higher is better; 0 for a response without tokens. The end-of-sequence token is charged like any
    other.
    """
    explains_NT = segments.knockout(evidence).amax(-1)
    costs = ((-evidence.observation.logprobs - threshold) / width).clamp(0, 1)
    count_P = segments.segments(evidence).any(-1).sum(-1)
    charged = costs * (1 - (explains_NT / explained).clamp(0, 1))
    return -charged.sum(-1) / evidence.per_row(count_P).clamp(min=1)
