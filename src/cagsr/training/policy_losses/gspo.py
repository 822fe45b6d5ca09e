"""Sequence-level clipping (GSPO): one ratio a response, the geometric mean of its tokens' ratios."""

from pydantic import PositiveFloat
from torch import Tensor

from cagsr.training.policy_losses.clipped import surrogate
from cagsr.types import PolicyLoss

__all__ = ["gspo"]


def gspo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: PositiveFloat = 3e-4,
    clip_high: PositiveFloat = 4e-4,
) -> PolicyLoss:
    """`clipped` with the ratio s = exp(mean over the response's tokens of logprobs - old_logprobs).

    A response is clipped as a whole, hence the narrow bounds. In the gradient s is a weight, and each token has that
    of its own log-probability; where a response's tokens share one advantage this is the gradient of the objective
    with one term a response. The paper averages over responses: ``loss_normalisation: sequence``.

    Source: GSPO, arXiv 2507.18071, equation 7 in the form of equations 13 and 14 (GSPO-token); bounds of section 5.1.
    """
    moved = (logprobs - old_logprobs) * mask
    mean = moved.detach().sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
    ratio = mean.exp() * (logprobs - logprobs.detach()).exp()
    return surrogate(ratio, advantages, clip, clip_high)
