"""Generalised advantage estimation (GAE), token by token, with a critic: the estimator of PPO."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["gae", "token_rewards", "whiten"]


def token_rewards(reward_N: Tensor, penalty_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """Token rewards [N T]: the response's reward at its last token, minus a penalty (KL) at every token.

    Source: Ziegler et al., arXiv 1909.08593, section 2.1.
    """
    last = (mask_NT.sum(-1) - 1).clamp(min=0)
    rewards = -penalty_NT * mask_NT
    return rewards.scatter_add(1, last[:, None], reward_N[:, None].to(rewards.dtype))


def gae(
    rewards_NT: Tensor, values_NT: Tensor, mask_NT: Tensor, *, discount: float, trace: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation: ``(advantages, returns)`` [N T], 0 at padding.

    delta_t = r_t + discount * V_{t+1} - V_t;  A_t = delta_t + discount * trace * A_{t+1};  returns = A + V.
    The value after the last token is 0, also for a response cut off at the length limit: the reward is of the
    response as it stands. With values of 0, discount 1 and a reward at the last token alone,
    A_t = trace^(T - t) * reward: below 1 an advantage then tells of a token's place before it tells of the response.

    Source: Schulman et al., arXiv 1506.02438, equation 16; trace is their lambda.
    """
    values = values_NT * mask_NT
    advantages = torch.zeros_like(rewards_NT)
    following_value = following_advantage = torch.zeros_like(rewards_NT[:, 0])
    for t in reversed(range(rewards_NT.shape[1])):
        delta = rewards_NT[:, t] + discount * following_value - values[:, t]
        following_advantage = (delta + discount * trace * following_advantage) * mask_NT[:, t]
        following_value = values[:, t]
        advantages[:, t] = following_advantage
    return advantages, (advantages + values) * mask_NT


def whiten(advantages_NT: Tensor, mask_NT: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
    """Advantages with mean 0 and variance 1 over all tokens of the step; ``total`` sums a tensor over processes."""
    mask = mask_NT.cpu()
    kept = advantages_NT.cpu().double() * mask
    count, sums, squares = total(torch.stack([mask.sum().double(), kept.sum(), kept.square().sum()]))
    mean = sums / count
    deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
    scaled = (kept - mean) / deviation.clamp(min=1e-8)
    return (scaled * mask).to(advantages_NT)
