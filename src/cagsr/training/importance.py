"""Importance weights of responses that another engine than the policy drew: by token or response, cut or left out.

An engine with the policy's weights and other kernels draws from a distribution a little beside the policy's. A weight
near policy / engine makes the update that of the policy's own samples.

token_truncate      min(r_t, limit), r_t the ratio of a token. Its variance is bounded; it is biased, as how likely the
                    tokens before t were is left out
token_mask          r_t, or 0 above the limit
sequence_truncate   min(r, limit) for all tokens of a response, r the product of their ratios. Without a limit it is
                    unbiased; over long responses r is near 0 or large whatever the engines are
sequence_mask       r, or 0 for all tokens of a response above the limit: it teaches nothing

Source: token_truncate is TIS, Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL
Training", whose limit is 2. The names are those of TRL 1.16, whose default is sequence_mask with 3.
Differs: no lower limit.
"""

from torch import Tensor

__all__ = ["importance_sums", "importance_weight"]


def importance_weight(
    logprobs: Tensor, sampled_logprobs: Tensor, mask: Tensor, how: str, limit: float
) -> tuple[Tensor, Tensor]:
    """The weight of each token [N T], and whether its ratio is above ``limit``; both without gradient.

    ``logprobs`` are the policy's own for the weights that the engine had, ``sampled_logprobs`` the engine's.
    """
    level, _, bound = how.partition("_")
    moved = (logprobs - sampled_logprobs).detach()
    if level == "sequence":
        moved = (moved * mask).sum(-1, keepdim=True).expand_as(mask)
    ratio = moved.exp()
    beyond = ratio > limit
    return ratio.clamp(max=limit) if bound == "truncate" else ratio.masked_fill(beyond, 0.0), beyond


def importance_sums(logprobs: Tensor, sampled_logprobs: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """``importance`` and ``mismatch``, as `step_metrics.measure` defines them, summed over tokens."""
    difference = (logprobs - sampled_logprobs)[mask]
    return {"importance": difference.exp().sum(), "mismatch": -difference.sum()}
