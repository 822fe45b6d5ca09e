"""The arithmetic of a reading: a block of softmax(q k^T * scale + bias), one head at a time."""

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import create_position_bias_mask, sdpa_attention_forward

from .fused import fused_attention

BLOCK = 1 << 18
"""Scores computed at a time: 1 MB in float32, about what a core's cache holds."""


def additive(
    mask: Tensor | None, position_bias: Tensor | None, is_causal: bool, query: Tensor, key: Tensor
) -> Tensor | None:
    """Boolean or float mask and position bias as one additive bias [1|N 1|H Q K] in the query's dtype."""
    # T5 hands cross-attention a bias of zeros; added to the mask it would cost [N H Q K].
    if position_bias is not None and position_bias.any():
        return create_position_bias_mask(position_bias, mask, is_causal, query, key).to(query.dtype)
    if mask is None or mask.dtype != torch.bool:
        return None if mask is None else mask.to(query.dtype)
    bias = torch.zeros(mask.shape, dtype=query.dtype, device=mask.device)
    return bias.masked_fill_(~mask, -torch.inf)


def cut(bias: Tensor | None, is_causal: bool, rows: slice | Tensor, columns: slice) -> Tensor | None:
    """The bias of these rows and columns, float32 [1|N 1|H T S], or None where it is 0 throughout."""
    if bias is not None:
        return bias[:, :, rows, columns].float()
    if not is_causal or isinstance(rows, Tensor) or rows.start + 1 >= columns.stop:
        return None
    later = torch.arange(columns.start, columns.stop) > torch.arange(rows.start, rows.stop)[:, None]
    return torch.zeros(later.shape).masked_fill_(later, -torch.inf)[None, None]


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    is_causal: bool,
    scale: float,
    dropout: float,
    rows: slice | Tensor,
) -> tuple[Tensor, Tensor]:
    """The output [N Q H D] as sdpa gives it, and the log-sum-exp [N H T] of ``rows`` over all keys; no gradient."""
    fused = fused_attention(query, key, value, bias, is_causal, scale, dropout)
    if fused is not None:
        output, lse = fused
        return output.transpose(1, 2).contiguous(), lse[:, :, rows]
    output, _ = sdpa_attention_forward(
        module, query, key, value, bias, dropout=dropout, scaling=scale, is_causal=is_causal
    )
    every_key = cut(bias, is_causal, rows, slice(0, key.shape[2]))
    return output, log_sum_exp(query[:, :, rows], key, every_key, scale)


def log_sum_exp(query: Tensor, key: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Float32 [N H T] over all keys, a few rows at a time: for kernels that keep theirs to themselves."""
    batch, heads, length, _ = query.shape
    repeats = heads // key.shape[1]
    lse = torch.empty(batch, heads, length, dtype=torch.float32, device=query.device)
    step = max(1, BLOCK // (batch * key.shape[2]))
    for head in range(heads):
        key_h = key[:, head // repeats].float().transpose(1, 2)
        bias_h = None if bias is None else bias[:, head % bias.shape[1]].to(query.device)
        for start in range(0, length, step):
            rows = slice(start, start + step)
            scores = torch.bmm(query[:, head, rows].float(), key_h).mul_(scale)
            if bias_h is not None:
                scores += bias_h[:, rows]
            lse[:, head, rows] = scores.logsumexp(-1)
    return lse


def add_attention(
    total: Tensor, query: Tensor, key: Tensor, lse: Tensor, bias: Tensor | None, scale: float, share: float
) -> None:
    """total [N T S] += share * sum over heads of exp(q k^T * scale + bias - lse), in place, float32.

    query [N H T D], key [N G S D] with H a multiple of G, lse [N H T] over all keys, bias [1|N 1|H T S].
    """
    batch, heads, length, _ = query.shape
    repeats = heads // key.shape[1]
    if bias is None:
        bias = total.new_zeros(()).expand(1, 1, length, key.shape[2])
    bias = bias.to(total.device).expand(batch, -1, -1, -1)
    # A row that sees no key has the mask's own huge negative number as lse, which would cancel the mask.
    lse = lse.masked_fill(lse < torch.finfo(query.dtype).min / 2, torch.inf)
    step = max(1, BLOCK // (length * key.shape[2]))
    buffer = torch.empty_like(total[:step])
    for start in range(0, batch, step):
        rows = slice(start, min(start + step, batch))
        weights = buffer[: rows.stop - rows.start]
        for head in range(heads):
            torch.sub(bias[rows, head % bias.shape[1]], lse[rows, head, :, None], out=weights)
            query_h, key_h = query[rows, head].float(), key[rows, head // repeats].float()
            weights.baddbmm_(query_h, key_h.transpose(1, 2), alpha=scale)
            total[rows].add_(weights.exp_(), alpha=share)
