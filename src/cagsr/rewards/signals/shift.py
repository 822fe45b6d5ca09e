"""Attention shift: how far the attention moves from one response token to the next."""

__all__ = ["shift"]

import math
from typing import Literal

import torch
from torch import Tensor

from cagsr.rewards.signals.ingredients import mean_over, text_mask
from cagsr.types import Evidence


def shift(evidence: Evidence, *, direction: Literal["moving", "still"] = "moving") -> Tensor:
    """[N] ``+- mean_t JS(a_t, a_{t+1})`` in bits, ``a_t = A[t, :] / sum_j A[t, j]``.

    ``moving`` (plus) rewards attention that travels through the prompt instead of standing where it was;
    ``still`` (minus) rewards smooth transitions. Pairs with a row that does not look at the prompt at all
    are left out.

    Range [0, 1] for ``moving``, [-1, 0] for ``still``; higher is better. 0 where fewer than two rows look at
    the prompt, as in an empty response.

    Source: Jensen-Shannon divergence, Lin 1991.
    """
    rows = evidence.observation.attention
    mass = rows.sum(-1)
    looks = text_mask(evidence.rollout) & (mass > 0)
    rows = rows / mass.where(looks, 1).unsqueeze(-1)
    entropy = torch.special.entr(rows).sum(-1)
    middle = (rows[:, 1:] + rows[:, :-1]).div_(2)
    divergence = torch.special.entr(middle, out=middle).sum(-1) - (entropy[:, 1:] + entropy[:, :-1]) / 2
    moved = mean_over(divergence.clamp(min=0), looks[:, 1:] & looks[:, :-1]) / math.log(2)
    return moved if direction == "moving" else -moved
