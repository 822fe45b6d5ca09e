"""Losses as pure functions per token [N T], and the token weights by which they are averaged.

A loss here is a tensor per token. `token_weights` turns "mean" into numbers once, for the whole optimizer step,
over all micro-batches and processes; the loss of a micro-batch is then ``(per_token * weights).sum()`` and
micro-batches add up, whatever their sizes and lengths.
"""

import torch
from torch import Tensor

__all__ = ["NORMALISATIONS", "clipped_value_loss", "token_weights"]

NORMALISATIONS = ("token", "sequence", "constant")


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Clipped value loss max((V - R)^2, (clip(V, V_old +- clip) - R)^2) / 2 per token.

    Source: the PPO implementation of OpenAI baselines; the paper leaves the value loss unclipped.
    """
    clipped = torch.clamp(values, old_values - clip, old_values + clip)
    return torch.maximum((values - returns).square(), (clipped - returns).square()) / 2


def token_weights(mask: Tensor, how: str, *, tokens: float, rows: float, length_limit: int) -> Tensor:
    """The weight [N T] of each token in the loss, 0 at padding.

    token:     1 / tokens                       every token counts the same (DAPO, arXiv 2503.14476)
    sequence:  1 / (rows * tokens of its row)   every response counts the same (GRPO, arXiv 2402.03300)
    constant:  1 / (rows * length_limit)        no length in the denominator (Dr. GRPO, arXiv 2503.20783)

    ``tokens`` and ``rows`` are totals over the whole optimizer step: every micro-batch, every process.
    """
    if how == "token":
        return mask / tokens
    if how == "sequence":
        return mask / (rows * mask.sum(-1, keepdim=True).clamp(min=1))
    if how == "constant":
        return mask / (rows * length_limit)
    raise ValueError(f"normalisation must be one of {NORMALISATIONS}, got {how!r}")
