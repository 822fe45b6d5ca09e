"""Attention weights, their log-sum-exp and their sum over heads in plain torch, block by block and head by head."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import create_position_bias_mask, sdpa_attention_forward

from cagsr.attention.call import AttentionCall
from cagsr.attention.sdpa_lse import fused_attention

BLOCK = 1 << 18
"""How many scores are computed at a time: 1 MB in float32, about what a core's cache holds."""


def additive(call: AttentionCall) -> Tensor | None:
    """Mask and position bias of a call as one additive bias [1|N 1|H Q K] in the query's dtype; None: neither."""
    query, mask, position_bias = call.query, call.mask, call.position_bias
    # T5 hands cross-attention a bias of zeros; added to the mask it would cost [N H Q K].
    if position_bias is not None and position_bias.any():
        bias = create_position_bias_mask(position_bias, mask, call.is_causal, query, call.key)
        return bias.to(query.dtype)
    if mask is None or mask.dtype != torch.bool:
        return None if mask is None else mask.to(query.dtype)
    bias = torch.zeros(mask.shape, dtype=query.dtype, device=mask.device)
    return bias.masked_fill_(~mask, -torch.inf)


def cut(bias: Tensor | None, is_causal: bool, rows: slice | Tensor, columns: slice) -> Tensor | None:
    """The part of a bias in these rows and columns, float32 [1|N 1|H T S]; None where it is 0 throughout."""
    if bias is not None:
        return bias[:, :, rows, columns].float()
    if not is_causal or isinstance(rows, Tensor) or rows.start + 1 >= columns.stop:
        return None
    later = torch.arange(columns.start, columns.stop) > torch.arange(rows.start, rows.stop)[:, None]
    return torch.zeros(later.shape).masked_fill_(later, -torch.inf)[None, None]


def attend(call: AttentionCall, rows: slice | Tensor) -> tuple[Tensor, Tensor]:
    """Attention by sdpa: its output [N Q H D], and the log-sum-exp [N H T] of ``rows`` over all keys; no gradient.

    The call's mask is additive and in the query's dtype, or None (see `additive`).
    """
    fused = fused_attention(call)
    if fused is not None:
        output, lse = fused
        return output.transpose(1, 2).contiguous(), lse[:, :, rows]
    output, _ = sdpa_attention_forward(
        call.module,
        call.query,
        call.key,
        call.value,
        call.mask,
        dropout=call.dropout,
        scaling=call.scaling,
        is_causal=call.is_causal,
    )
    every_key = cut(call.mask, call.is_causal, rows, slice(0, call.key.shape[2]))
    return output, log_sum_exp(call.query[:, :, rows], call.key, every_key, call.scaling)


def log_sum_exp(query: Tensor, key: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """The log-sum-exp of scores over all keys, float32 [N H T], computed a few rows at a time.

    For sdpa's kernels that do not return theirs.
    """
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
    total: Tensor,
    query: Tensor,
    key: Tensor,
    lse: Tensor,
    bias: Tensor | None,
    scale: float,
    shares: Sequence[float],
) -> None:
    """Add attention weights, each head by its share, to a total in place, float32.

    total [N T S] += sum over heads h of shares[h] * exp(q k^T * scale + bias - lse). A share of 0 costs nothing.

    query [N H T D], key [N G S D] with H a multiple of G, lse [N H T] over all keys, bias [1|N 1|H T S].
    """
    batch, heads, length, _ = query.shape
    repeats, columns = heads // key.shape[1], key.shape[2]
    if bias is not None:
        bias = bias.to(total.device).expand(batch, -1, length, -1)
    # A row that sees no key has the mask's own huge negative number as lse, which would cancel the mask.
    lse = lse.float().masked_fill(lse < torch.finfo(query.dtype).min / 2, torch.inf)
    # The log-sum-exp is subtracted by the product itself: it is one more feature of a query, and 1 that of a key.
    query = torch.cat([query.float() * scale, -lse.unsqueeze(-1)], -1)
    key = torch.cat([key.float(), key.new_ones(1, dtype=torch.float32).expand(*key.shape[:3], 1)], -1)
    rows = max(1, min(length, BLOCK // columns))
    step = max(1, min(batch, BLOCK // (rows * columns)))
    buffer = total.new_empty(step, rows, columns)
    for start in range(0, batch, step):
        some = slice(start, min(start + step, batch))
        for first in range(0, length, rows):
            each = slice(first, min(first + rows, length))
            weights = buffer[: some.stop - some.start, : each.stop - each.start]
            for head in (head for head in range(heads) if shares[head]):
                torch.bmm(query[some, head, each], key[some, head // repeats].transpose(1, 2), out=weights)
                if bias is not None:
                    weights += bias[some, head % bias.shape[1], each]
                total[some, each].add_(weights.exp_(), alpha=shares[head])
