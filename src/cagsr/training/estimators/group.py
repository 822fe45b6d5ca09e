"""Group-relative advantages, as in GRPO: rewards standardised within the group."""

import torch
from torch import Tensor

__all__ = ["group_relative", "without_spread"]


def group_relative(reward_N: Tensor, group_size: int) -> Tensor:
    """Advantage (r - mean) / std within the group; a group whose rewards do not differ gets 0.

    Source: GRPO, arXiv 2402.03300, equation in section 4.1.2.
    Differs: the spread is compared with the size of the rewards instead of adding a fixed epsilon, so that the
    result does not depend on the reward's scale.
    """
    rewards = reward_N.cpu().double().view(-1, group_size)  # not every device has float64
    centred = rewards - rewards.mean(1, keepdim=True)
    spread, negligible = rewards.std(1, keepdim=True), without_spread(rewards)
    scaled = torch.where(negligible, 0.0, centred / torch.where(negligible, 1.0, spread))
    return scaled.view(-1).to(reward_N)


def without_spread(rewards_PK: Tensor) -> Tensor:
    """[P 1] bool: the rewards of a group differ by no more than rounding, so that nothing can be learnt from them."""
    return rewards_PK.std(1, keepdim=True) <= 1e-6 * rewards_PK.abs().amax(1, keepdim=True)
