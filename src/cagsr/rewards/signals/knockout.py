"""Knockout coverage: how much of the response the observer finds less likely without each part of the prompt."""

__all__ = ["knockout"]

from typing import Literal

import torch
from torch import Tensor

from cagsr.rewards import segments
from cagsr.types import Evidence


def knockout(
    evidence: Evidence, *, threshold: float = 3.0, weights: Literal["segments", "salience"] = "segments"
) -> Tensor:
    """[N] ``sum_j w_j sigmoid(D_j - threshold)`` with ``D_j = sum_t log p(y_t | x) - log p(y_t | x without j)``.

    D_j, in nats, is what segment j of the prompt explains of the whole response, the end-of-sequence token
    included: an end is likelier where what is still unsaid is not known. ``segments``: every segment of the prompt
    weighs the same; ``salience``: a segment weighs what its tokens weigh. One pass of the observer a segment.

    Range [0, 1]; higher is better; 0 where a prompt has no segment.

    Source: knockout coverage of the project's experiments.
    Differs: no attention is read; it is what attention is an estimate of.
    """
    pieces_PJS = segments.segments(evidence)
    weights_PJ = pieces_PJS.any(-1).float()
    if weights == "salience":
        weights_PJ = torch.einsum("pjs,ps->pj", pieces_PJS.float(), evidence.salience)
    weights_PJ = weights_PJ / weights_PJ.sum(-1, keepdim=True).clamp(min=1e-12)
    explained_NJ = segments.knockout(evidence).sum(1)
    return (evidence.per_row(weights_PJ) * (explained_NJ - threshold).sigmoid()).sum(-1)
