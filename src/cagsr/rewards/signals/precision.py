"""Mean log-probability of the response, each token weighted by its attention to salient prompt tokens."""

__all__ = ["precision"]

import torch
from torch import Tensor

from cagsr.rewards.signals.ingredients import mean_over
from cagsr.types import Evidence


def precision(evidence: Evidence) -> Tensor:
    """[N] ``sum_t s_t log p(y_t) / sum_t s_t`` with ``s_t = sum_j w_j A[t, j]``.

    Range (-inf, 0]; higher is better. A response that never looks at a salient token has its plain mean
    log-probability, since 0 would make it the best of all; 0 only for a response without any token.

    Source: the precision term of the project's calibration experiments.
    """
    rollout, logprobs = evidence.rollout, evidence.observation.logprobs
    looked = torch.einsum("nts,ns->nt", evidence.observation.attention, evidence.per_row(evidence.salience))
    total = looked.sum(-1)
    weighted = (looked * logprobs).sum(-1) / total.where(total > 0, 1)
    return weighted.where(total > 0, mean_over(logprobs, rollout.response_mask))
