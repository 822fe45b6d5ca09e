"""Clipped surrogate objective of PPO, which GRPO uses too."""

import torch
from pydantic import PositiveFloat
from torch import Tensor

from cagsr.types import PolicyLoss

__all__ = ["clipped"]


def clipped(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, *, clip: PositiveFloat = 0.2
) -> PolicyLoss:
    """-min(ratio A, clamp(ratio, 1 - clip, 1 + clip) A) per token; ratio = exp(logprobs - old_logprobs).

    Source: PPO, arXiv 1707.06347, equation 7.
    """
    ratio = (logprobs - old_logprobs).exp()
    bounded = ratio.clamp(1 - clip, 1 + clip)
    beyond = (ratio.detach() - 1).abs() > clip
    return PolicyLoss(-torch.minimum(ratio * advantages, bounded * advantages), beyond)
