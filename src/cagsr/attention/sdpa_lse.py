"""Attention by the kernel that torch's sdpa would take, and the log-sum-exp that this kernel has computed anyway.

The CPU's flash kernel is called wherever sdpa would call it. On CUDA torch itself is asked which kernel it would take
(flash, memory-efficient or cuDNN's: by device, dtype, shapes, bias and the user's own settings), and it gets its inputs
as sdpa prepares them. None of this was run on a GPU yet (docs/gpu.md); calls and the shapes of what they return were
checked against what torch declares, on tensors without data.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend
from transformers.integrations.sdpa_attention import repeat_kv, use_gqa_in_sdpa

from cagsr.attention.call import AttentionCall

__all__ = ["fused_attention"]

aten = torch.ops.aten


def fused_attention(call: AttentionCall) -> tuple[Tensor, Tensor] | None:
    """The output [N H Q E] and the log-sum-exp [N H Q]; None where sdpa takes a kernel that does not return it.

    The call's mask is [1|N 1|H Q K] in the query's dtype, or None.
    """
    query, key, value = call.query, call.key, call.value
    if call.dropout > 0.0:
        return None
    if query.device.type == "cpu" and query.shape[-1] == key.shape[-1] == value.shape[-1]:
        return aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, call.is_causal, attn_mask=call.mask, scale=call.scaling
        )
    return _on_cuda(call) if query.device.type == "cuda" else None


def _on_cuda(call: AttentionCall) -> tuple[Tensor, Tensor] | None:
    heads, groups = call.query.shape[1], call.key.shape[1]
    grouped = heads != groups
    if grouped and not use_gqa_in_sdpa(call.mask, call.key, call.value):
        repeats = heads // groups
        call = replace(call, key=repeat_kv(call.key, repeats), value=repeat_kv(call.value, repeats))
        grouped = False
    kernel = KERNELS.get(_choice(call, grouped))
    return None if kernel is None else kernel(call)


def _choice(call: AttentionCall, grouped: bool) -> int:
    """The number of the kernel that torch's own sdpa would take; ``grouped``: heads share keys."""
    return aten._fused_sdp_choice(
        call.query,
        call.key,
        call.value,
        call.mask,
        0.0,
        call.is_causal,
        scale=call.scaling,
        enable_gqa=grouped,
    )


def _flash(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """FlashAttention, which is never chosen with a bias and takes widths that are multiples of 8."""
    short = -call.query.shape[-1] % 8
    padded = [F.pad(each, (0, short)) if short else each for each in (call.query, call.key, call.value)]
    output, lse, *_ = aten._scaled_dot_product_flash_attention(
        *padded, 0.0, call.is_causal, scale=call.scaling
    )
    return output[..., : call.value.shape[-1]], lse


def _efficient(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """The memory-efficient kernel: rows of its bias begin at multiples of 16, its log-sum-exp is padded to 32 rows."""
    query, bias = call.query, call.mask
    if bias is not None:
        columns = bias.shape[-1]
        if bias.stride(-1) != 1 or any(stride % 16 for stride in bias.stride()[:-1]):
            bias = F.pad(bias, (0, 16 - columns % 16))[..., :columns]
        bias = bias.expand(*query.shape[:3], columns)
    output, lse, *_ = aten._scaled_dot_product_efficient_attention(
        query, call.key, call.value, bias, True, 0.0, call.is_causal, scale=call.scaling
    )
    return output, lse[:, :, : query.shape[2]]


def _cudnn(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """cuDNN's kernel, whose log-sum-exp is [N H Q 1]."""
    output, lse, *_ = aten._scaled_dot_product_cudnn_attention(
        call.query, call.key, call.value, call.mask, True, 0.0, call.is_causal, scale=call.scaling
    )
    return output, lse.reshape(call.query.shape[:3])


KERNELS = {
    SDPBackend.FLASH_ATTENTION.value: _flash,
    SDPBackend.EFFICIENT_ATTENTION.value: _efficient,
    SDPBackend.CUDNN_ATTENTION.value: _cudnn,
}
