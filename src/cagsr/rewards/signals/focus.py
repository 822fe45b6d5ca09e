"""Attention focus: how concentrated the attention to the prompt is."""

__all__ = ["focus"]

from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from cagsr.rewards.signals.ingredients import mean_over, text_mask
from cagsr.types import Evidence


def _ordered(limits: list[float]) -> list[float]:
    if not 0 <= limits[0] < limits[1] <= 1:
        raise ValueError("expected 0 <= low < high <= 1")
    return limits


def focus(
    evidence: Evidence,
    *,
    direction: Literal["low_entropy", "high_entropy"] = "low_entropy",
    clamp: Annotated[list[float], Field(min_length=2, max_length=2), AfterValidator(_ordered)] | None = None,
) -> Tensor:
    """[N] ``-+ clamp(mean_t H(A[t, :] / sum_j A[t, j]) / log |P|)``: sharp rows, or broad ones.

    |P| counts the prompt's tokens. ``low_entropy`` rewards sharp rows (minus), ``high_entropy`` broad ones
    (plus). ``clamp = [low, high]`` holds the mean entropy inside these limits, beyond which nothing more is
    gained or lost. Rows without any attention to the prompt have no entropy and are left out.

    Range [-1, 0] for ``low_entropy``, [0, 1] for ``high_entropy``; higher is better. An empty response has
    the worst value of its direction.

    Source: arXiv 2502.10482, focus; arXiv 2506.11108, which penalises *low* entropy and clamps it.
    Differs: divided by log |P|, so that long prompts are not less focused for being long. The papers
    disagree on the sign, so it is an option.
    """
    attention = evidence.observation.attention
    mass = attention.sum(-1)
    has_entropy = text_mask(evidence.rollout) & (mass > 0)
    # H(a / m) = log m + (1/m) sum_j entr(a_j) needs no normalised copy of the attention.
    safe_mass = mass.where(has_entropy, 1)
    entropy = safe_mass.log() + torch.special.entr(attention).sum(-1) / safe_mass
    size = evidence.per_row(evidence.rollout.prompt_mask.sum(-1)).clamp(min=2)
    share = (mean_over(entropy, has_entropy) / size.log()).clamp(0, 1)
    low = direction == "low_entropy"
    share = share.where(has_entropy.any(-1), 1.0 if low else 0.0)
    if clamp is not None:
        share = share.clamp(*clamp)
    return -share if low else share
