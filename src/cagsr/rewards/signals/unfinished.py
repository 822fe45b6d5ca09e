"""Penalty for a response without an end-of-sequence token."""

__all__ = ["unfinished"]

from torch import Tensor

from cagsr.types import Evidence


def unfinished(evidence: Evidence) -> Tensor:
    """[N] -1 where the response has no end-of-sequence token, else 0; higher is better."""
    return evidence.rollout.finished.float() - 1
