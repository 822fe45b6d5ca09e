"""REINFORCE with a baseline: rewards minus the mean of all other responses of the step."""

from torch import Tensor

from cagsr.training.estimators.leave_one_out import leave_one_out

__all__ = ["batch_baseline"]


def batch_baseline(reward_N: Tensor, group_size: int) -> Tensor:
    """Advantage r minus the mean reward of the other N - 1 responses of the step, whatever their prompts.

    Source: REINFORCE with a baseline (Williams 1992); the baseline leaves its own sample out, so it is unbiased.
    """
    return leave_one_out(reward_N, len(reward_N))
