"""Clipped surrogate objective of PPO, which GRPO uses too; with bounds of its own above and below, that of DAPO."""

import torch
from pydantic import PositiveFloat
from torch import Tensor

from cagsr.types import PolicyLoss

__all__ = ["clipped", "surrogate"]


def clipped(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: PositiveFloat = 0.2,
    clip_high: PositiveFloat | None = None,
) -> PolicyLoss:
    """-min(ratio A, clamp(ratio, 1 - clip, 1 + clip_high) A) per token; ratio = exp(logprobs - old_logprobs).

    ``clip_high`` is ``clip`` where it is None. A higher one lets unlikely tokens grow: at 0.2 a token of probability
    .01 may reach .012 in one rollout, one of .9 may reach 1.

    Source: PPO, arXiv 1707.06347, equation 7; DAPO, arXiv 2503.14476, section 3.1, whose bounds are .2 and .28.
    """
    ratio = (logprobs - old_logprobs).exp()
    return surrogate(ratio, advantages, clip, clip if clip_high is None else clip_high)


def surrogate(ratio: Tensor, advantages: Tensor, low: float, high: float) -> PolicyLoss:
    """-min(ratio A, clamp(ratio, 1 - low, 1 + high) A), and where the ratio is beyond these bounds."""
    bounded = ratio.clamp(1 - low, 1 + high)
    moved = ratio.detach() - 1
    beyond = (moved > high) | (-moved > low)
    return PolicyLoss(-torch.minimum(ratio * advantages, bounded * advantages), beyond)
