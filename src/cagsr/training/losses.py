"""Losses as pure functions per token [N T], and the token weights by which they are averaged.

A loss here is a tensor per token. `token_weights` turns "mean" into numbers once, for the whole optimizer step,
over all micro-batches and processes; the loss of a micro-batch is then ``(per_token * weights).sum()`` and
micro-batches add up, whatever their sizes and lengths.
"""

import torch
from torch import Tensor

__all__ = [
    "NORMALISATIONS",
    "clipped_value_loss",
    "importance_weight",
    "token_weights",
]

NORMALISATIONS = ("token", "sequence", "constant")

LARGEST_IMPORTANCE = 2.0


def importance_weight(logprobs: Tensor, sampled_logprobs: Tensor) -> Tensor:
    """Truncated importance weight min(exp(logprobs - sampled_logprobs), 2) of each token drawn by another engine.

    Without gradient. ``logprobs`` are the policy's own for the weights that the engine had. Truncation biases a little
    and bounds the variance; a token that the engine drew more often than the policy would is counted down without a
    bound.
    Token by token, not for a whole response: the product over a response is near 0 or large for long ones, whatever
    is done about it, and the ratio of a policy update (`policy_losses.clipped`) is one of tokens too.

    Source: Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training" (TIS), whose
    bound is 2. Differs: TRL 1.16 masks whole responses by default.
    """
    return (logprobs - sampled_logprobs).exp().clamp(max=LARGEST_IMPORTANCE).detach()


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
