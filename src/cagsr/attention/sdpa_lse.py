"""sdpa by the kernel that it would take anyway, and the log-sum-exp that this kernel has computed.

The CPU's flash kernel is called wherever sdpa would call it. On CUDA torch itself is asked which kernel it would take
(flash, memory-efficient or cuDNN's: by device, dtype, shapes, bias and the user's own settings), and it gets its inputs
as sdpa prepares them. None of this was run on a GPU yet (docs/gpu.md); calls and the shapes of what they return were
checked against what torch declares, on tensors without data.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend
from transformers.integrations.sdpa_attention import repeat_kv, use_gqa_in_sdpa

__all__ = ["fused_attention"]

aten = torch.ops.aten


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    is_causal: bool,
    scale: float,
    dropout: float,
) -> tuple[Tensor, Tensor] | None:
    """The output [N H Q E] and the log-sum-exp [N H Q], or None where sdpa takes no kernel that hands it out.

    query [N H Q D], key [N G K D] and value [N G K E] with H a multiple of G, bias [1|N 1|H Q K] of their dtype.
    """
    if dropout > 0.0:
        return None
    if query.device.type == "cpu" and query.shape[-1] == key.shape[-1] == value.shape[-1]:
        return aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, is_causal, attn_mask=bias, scale=scale
        )
    return _on_cuda(query, key, value, bias, is_causal, scale) if query.device.type == "cuda" else None


def _on_cuda(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor] | None:
    grouped = query.shape[1] != key.shape[1]
    if grouped and not use_gqa_in_sdpa(bias, key, value):
        key, value = (repeat_kv(each, query.shape[1] // each.shape[1]) for each in (key, value))
        grouped = False
    kernel = KERNELS.get(_choice(query, key, value, bias, is_causal, scale, grouped))
    return None if kernel is None else kernel(query, key, value, bias, is_causal, scale)


def _choice(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    is_causal: bool,
    scale: float,
    grouped: bool,
) -> int:
    return aten._fused_sdp_choice(query, key, value, bias, 0.0, is_causal, scale=scale, enable_gqa=grouped)


def _flash(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """It is never chosen with a bias."""
    short = -query.shape[-1] % 8
    padded = [F.pad(each, (0, short)) if short else each for each in (query, key, value)]
    output, lse, *_ = aten._scaled_dot_product_flash_attention(*padded, 0.0, is_causal, scale=scale)
    return output[..., : value.shape[-1]], lse


def _efficient(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """It wants rows of the bias to begin at multiples of 16, and pads the log-sum-exp to a multiple of 32 rows."""
    if bias is not None:
        columns = bias.shape[-1]
        if bias.stride(-1) != 1 or any(stride % 16 for stride in bias.stride()[:-1]):
            bias = F.pad(bias, (0, 16 - columns % 16))[..., :columns]
        bias = bias.expand(*query.shape[:3], columns)
    output, lse, *_ = aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, True, 0.0, is_causal, scale=scale
    )
    return output, lse[:, :, : query.shape[2]]


def _cudnn(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Its log-sum-exp is [N H Q 1]."""
    output, lse, *_ = aten._scaled_dot_product_cudnn_attention(
        query, key, value, bias, True, 0.0, is_causal, scale=scale
    )
    return output, lse.reshape(query.shape[:3])


KERNELS = {
    SDPBackend.FLASH_ATTENTION.value: _flash,
    SDPBackend.EFFICIENT_ATTENTION.value: _efficient,
    SDPBackend.CUDNN_ATTENTION.value: _cudnn,
}
