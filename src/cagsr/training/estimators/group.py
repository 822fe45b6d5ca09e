"""Group-relative advantages, as in GRPO: rewards standardised within the group."""

import torch
from torch import Tensor

__all__ = ["group_relative"]


def group_relative(reward_N: Tensor, group_size: int) -> Tensor:
    """Advantage (r - mean) / std within the group; a group whose rewards do not differ gets 0.

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
