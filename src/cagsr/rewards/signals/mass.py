"""Attention mass on content tokens: the paper's literal coverage."""

__all__ = ["mass"]

import torch
from torch import Tensor

from cagsr.rewards.signals.ingredients import mean_over, text_mask
from cagsr.types import Evidence


def mass(evidence: Evidence) -> Tensor:
    """[N] ``mean_t sum_{j: w_j > 0} A[t, j]``.

    Range [0, 1]; higher is better; 0 for an empty response. Kept to reproduce the paper: it does not
    saturate, so one short focused clause maximises it.

    Source: arXiv 2502.10482, prompt coverage.
    """
    content = evidence.per_row(evidence.salience > 0).float()
    on_content = torch.einsum("nts,ns->nt", evidence.observation.attention, content)
    return mean_over(on_content, text_mask(evidence.rollout))
