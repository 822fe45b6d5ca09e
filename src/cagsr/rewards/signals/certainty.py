"""Self-certainty: KL divergence from the uniform distribution to the observer's predictions."""

__all__ = ["certainty"]

from torch import Tensor

from cagsr.rewards.signals.ingredients import mean_over
from cagsr.types import Evidence


def certainty(evidence: Evidence) -> Tensor:
    """[N] ``mean_t KL(uniform || p_t)`` in nats, the end-of-sequence token included.

    Range [0, inf); higher is better; 0 for a response without tokens.

    Source: self-certainty of Intuitor, arXiv 2505.19590.
    Differs: read from the frozen reference unless the run says otherwise; Intuitor reads the live policy.
    """
    return mean_over(evidence.observation.certainty, evidence.rollout.response_mask)
