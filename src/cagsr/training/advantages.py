"""From rewards to advantages: pure functions, one estimator each.

All sequence estimators map the reward of whole responses [N] (N = P * K, groups contiguous) to an advantage [N],
which every token of the response then shares. Generalised advantage estimation works token by token instead.
None of them multiplies by the mask twice, divides by a zero spread, or depends on where a group sits in the
batch, so groups may be spread over processes in any way.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = [
    "SEQUENCE_ESTIMATORS",
    "batch_baseline",
    "gae",
    "group",
    "leave_one_out",
    "token_rewards",
    "whiten",
]


def group(reward_N: Tensor, group_size: int) -> Tensor:
    """(r - mean) / std within the group; a group whose rewards do not differ gets 0.

    Source: GRPO, arXiv 2402.03300, equation in section 4.1.2.
    Differs: the spread is compared with the size of the rewards instead of adding a fixed epsilon, so that the
    result does not depend on the reward's scale.
    """
    rewards = reward_N.cpu().double().view(-1, group_size)  # not every device has float64
    centred = rewards - rewards.mean(1, keepdim=True)
    spread = rewards.std(1, keepdim=True)
    negligible = spread <= 1e-6 * rewards.abs().amax(1, keepdim=True)
    scaled = torch.where(negligible, 0.0, centred / torch.where(negligible, 1.0, spread))
    return scaled.view(-1).to(reward_N)


def leave_one_out(reward_N: Tensor, group_size: int) -> Tensor:
    """r minus the mean reward of the other K - 1 candidates of its prompt: an unbiased baseline.

    Source: RLOO, arXiv 2402.14740, section 3.
    """
    rewards = reward_N.view(-1, group_size)
    others = (rewards.sum(1, keepdim=True) - rewards) / (group_size - 1)
    return (rewards - others).view(-1)


def batch_baseline(reward_N: Tensor, group_size: int) -> Tensor:
    """r minus the mean reward of the other N - 1 responses of the step, whatever their prompts.

    Source: REINFORCE with a baseline (Williams 1992); the baseline leaves its own sample out, so it is unbiased.
    """
    return leave_one_out(reward_N, len(reward_N))


SEQUENCE_ESTIMATORS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "grpo": group,
    "rloo": leave_one_out,
    "policy-gradient": batch_baseline,
}


def token_rewards(reward_N: Tensor, penalty_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """[N T] the response's reward at its last token, minus a penalty (KL) at every token.

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
    response as it stands.

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
    """Mean 0 and variance 1 over all tokens of the step; ``total`` sums a tensor over processes."""
    mask = mask_NT.cpu()
    kept = advantages_NT.cpu().double() * mask
    count, sums, squares = total(torch.stack([mask.sum().double(), kept.sum(), kept.square().sum()]))
    mean = sums / count
    deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
    scaled = (kept - mean) / deviation.clamp(min=1e-8)
    return (scaled * mask).to(advantages_NT)
