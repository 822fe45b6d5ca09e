"""Response length: the control that every reward must be compared with, and in a logarithm a price for words."""

__all__ = ["length"]

from torch import Tensor

from cagsr.types import Evidence


def length(evidence: Evidence, *, log: bool = False) -> Tensor:
    """[N] response tokens, the end-of-sequence token included. Range [0, T]; higher is longer.

    With ``log`` their natural logarithm, range [0, log T], 0 for an empty response: half the length is worth the same
    at any length, so that a weight travels between short answers and long ones.
    """
    tokens = evidence.rollout.lengths.float()
    return tokens.clamp(min=1).log() if log else tokens
