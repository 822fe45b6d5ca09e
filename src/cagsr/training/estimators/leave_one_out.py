"""Leave-one-out advantages, as in RLOO: rewards minus the mean of the other candidates."""

from torch import Tensor

__all__ = ["leave_one_out"]


def leave_one_out(reward_N: Tensor, group_size: int) -> Tensor:
    """Advantage r minus the mean reward of the other K - 1 candidates of its prompt: an unbiased baseline.

    Source: RLOO, arXiv 2402.14740, section 3.
    """
    rewards = reward_N.view(-1, group_size)
    others = (rewards.sum(1, keepdim=True) - rewards) / (group_size - 1)
    return (rewards - others).view(-1)
