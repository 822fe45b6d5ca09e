"""Grounded coverage: attention to a prompt token counts where the response says, or is likely to say, that token."""

__all__ = ["grounding"]

from typing import Literal

from pydantic import PositiveFloat
from torch import Tensor

from cagsr.rewards.signals.ingredients import Saturation, saturate, text_mask
from cagsr.types import Evidence


def grounding(
    evidence: Evidence,
    *,
    weighted: Literal["written", "probability"] = "written",
    saturation: Saturation = "max",
    cap: PositiveFloat = 1.0,
) -> Tensor:
    """[N] ``sum_j w_j sat_t(A[t, j] m_t(x_j))``: attention to a prompt token times its being said.

    ``written``: ``m_t(x_j) = [y_t = x_j]``. ``probability``: ``m_t(x_j) = p_t(x_j)``, the observer's
    probability of that token at that step, whatever was then written. ``saturation`` and ``cap`` as in
    coverage.

    Range [0, 1], for capped sums [0, cap]; higher is better; 0 for an empty response.

    Source: pointer-style copy attention; attention x token identity and attention x probability of the
    project's experiments.
    Differs: blind to a value that is said in other words.
    """
    rollout, observation = evidence.rollout, evidence.observation
    if weighted == "written":
        prompt_ids = evidence.per_row(rollout.prompt_ids)
        looked = observation.attention.where(rollout.response_ids.unsqueeze(-1) == prompt_ids.unsqueeze(1), 0)
    else:
        looked = observation.prompt_logprobs.exp().mul_(observation.attention)
    looked = looked.mul_(text_mask(rollout).unsqueeze(-1))
    return (evidence.per_row(evidence.salience) * saturate(looked, saturation, cap)).sum(-1)
