"""Attended pieces: how strongly the response looks, somewhere, at each piece of the prompt."""

__all__ = ["attended"]

from pydantic import PositiveFloat
from torch import Tensor

from cagsr.rewards.segments import segments
from cagsr.rewards.signals.ingredients import strongest_looks
from cagsr.types import Evidence


def attended(evidence: Evidence, *, floor: PositiveFloat = 1e-5) -> Tensor:
    """[N] mean over pieces of ``log max_t mean_{j in piece} A[t, j]``: a piece that is looked at nowhere costs most.

    The logarithm makes a piece that is passed over cost more than one that is looked at twice as hard gains; below
    ``floor`` nothing is told apart. Reads the heads that the observer reads (`reward.heads`).

    Range [log(floor), 0]; higher is better; 0 where a prompt has no piece.

    Source: arXiv 2502.10482, prompt coverage.
    Differs: by pieces instead of tokens, and by the maximum over the response instead of the sum.
    """
    pieces_PJS = segments(evidence)
    looked_NJ = strongest_looks(evidence, pieces_PJS)
    present_NJ = evidence.per_row(pieces_PJS.any(-1)).float()
    return (looked_NJ.clamp(min=floor).log() * present_NJ).sum(-1) / present_NJ.sum(-1).clamp(min=1)
