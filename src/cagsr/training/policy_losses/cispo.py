"""Clipped importance weights on the policy gradient (CISPO): every token keeps its gradient, however far it moved."""

from pydantic import PositiveFloat
from torch import Tensor

from cagsr.types import PolicyLoss

__all__ = ["cispo"]


def cispo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    largest: PositiveFloat = 5.0,
) -> PolicyLoss:
    """-min(ratio, largest) A logprobs per token, the weight min(...) without gradient.

    Where `clipped` takes the gradient of a token away, this only bounds its weight. The value is no objective: only its
    gradient means something. With a single optimizer step a rollout the ratio is 1 and so is the weight.

    Source: MiniMax-M1, arXiv 2506.13585, equations 4 and 5; the bound, 1 + their epsilon_high, is that of ScaleRL,
    arXiv 2510.13786. Differs: no lower bound, which they set so wide that it does nothing.
    """
    ratio = (logprobs - old_logprobs).detach().exp()
    return PolicyLoss(-ratio.clamp(max=largest) * advantages * logprobs, ratio > largest)
