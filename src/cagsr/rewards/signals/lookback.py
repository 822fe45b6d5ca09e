"""Lookback ratio: share of attention that goes to the prompt rather than to the response itself."""

__all__ = ["lookback"]

from torch import Tensor

from cagsr.rewards.signals.ingredients import mean_over, text_mask
from cagsr.types import Evidence


def lookback(evidence: Evidence) -> Tensor:
    """[N] ``mean_t sum_j A[t, j]`` over all prompt tokens, template and sinks included.

    Range [0, 1]; higher is better; 0 for an empty response. Always 1 for encoder-decoders, whose
    cross-attention has nowhere else to go.

    Source: lookback ratio, Chuang et al., arXiv 2407.07071.
    Differs: raw mass; the paper divides mean attention a token on the context by that plus the same on the
    new tokens, a head at a time.
    """
    return mean_over(evidence.observation.attention.sum(-1), text_mask(evidence.rollout))
