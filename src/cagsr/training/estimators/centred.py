"""Group-centred advantages, as in Dr. GRPO: rewards minus the mean of their group, not divided by its spread."""

from torch import Tensor

__all__ = ["group_centred"]


def group_centred(reward_N: Tensor, group_size: int) -> Tensor:
    """Advantage r - mean within the group: a prompt whose candidates hardly differ counts little.

    (K - 1) / K of the leave-one-out advantage. The gradient has the unit of the reward, so the KL coefficient has too.

    Source: Dr. GRPO, arXiv 2503.20783, section 3.2; its other half is ``loss_normalisation: constant``.
    """
    rewards = reward_N.view(-1, group_size)
    return (rewards - rewards.mean(1, keepdim=True)).view(-1)
