"""Response length: the control that every reward must be compared with; with a negative weight a price for words."""

__all__ = ["length"]

from torch import Tensor

from cagsr.types import Evidence


def length(evidence: Evidence) -> Tensor:
    """[N] response tokens, the end-of-sequence token included. Range [0, T]; higher is longer."""
    return evidence.rollout.lengths.float()
