"""Triton kernel of `blocks.add_attention`, for CUDA.

One program computes one tile of [T S] for all heads, the sum over heads in registers: no [N H T S] is ever written, and
each number of the total is read and written once. Nothing is added atomically, so that the same input gives the same
bits.

Maxima over T are not taken on the way: the total is whole only after the last module that is read. Means over the
pieces of a prompt are, band by band of its columns (`by_piece`).

Importing this module imports Triton; `dispatch` does it where there is a use for it.

Not run on a GPU yet (docs/gpu.md). It was run by Triton's interpreter, and compiled for sm_80, sm_90 and sm_100. So the
size of a tile is not one that was measured to be fast: it is the largest for which ptxas keeps everything in registers.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["DTYPES", "WIDEST", "add_attention"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Types of queries and keys that the kernel takes. Products are summed in float32; float32 is not rounded to TF32."""

WIDEST = 256
"""Most dimensions of a head that the kernel takes; shared memory would not hold tiles of wider ones."""

# What differs from batch to batch; each value of its own would be compiled for by its divisors.
LENGTHS = ["length", "columns", "total_n", "total_t", "lse_n", "lse_h", "bias_n", "bias_h", "bias_t"]


@triton.jit(do_not_specialize=LENGTHS, do_not_specialize_on_alignment=["lse", "bias"])
def _add_tile(
    total, query, key, lse, bias, shares, scale, hidden, heads, repeats, length, columns,
    total_n, total_t, total_s, query_n, query_h, query_t, query_d, key_n, key_g, key_s, key_d,
    lse_n, lse_h, lse_t, bias_n, bias_h, bias_t, bias_s,
    BIASED: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    tiles_s = tl.cdiv(columns, TILE)
    tiles = tiles_s * tl.cdiv(length, TILE)
    tile = tl.program_id(0) % tiles
    n = (tl.program_id(0) // tiles).to(tl.int64)
    first_t = (tile // tiles_s).to(tl.int64) * TILE
    first_s = (tile % tiles_s).to(tl.int64) * TILE
    # Where the tile begins takes 64 bits; what lies within it takes 32, and half of the registers.
    total += n * total_n + first_t * total_t + first_s * total_s
    query += n * query_n + first_t * query_t
    key += n * key_n + first_s * key_s
    lse += n * lse_n + first_t * lse_t
    bias += n * bias_n + first_t * bias_t + first_s * bias_s
    t, s, d = tl.arange(0, TILE), tl.arange(0, TILE), tl.arange(0, PADDED)
    is_row, is_column, is_width = t < length - first_t, s < columns - first_s, d < WIDTH
    inside = is_row[:, None] & is_column[None, :]
    of_query = t[:, None] * query_t + d[None, :] * query_d
    of_key = s[None, :] * key_s + d[:, None] * key_d
    of_bias = t[:, None] * bias_t + s[None, :] * bias_s
    weights = tl.zeros((TILE, TILE), dtype=tl.float32)
    for head in range(heads):
        share = tl.load(shares + head)
        if share > 0.0:
            scores = tl.dot(
                tl.load(query + of_query, mask=is_row[:, None] & is_width[None, :], other=0.0),
                tl.load(key + of_key, mask=is_column[None, :] & is_width[:, None], other=0.0),
                input_precision="ieee",
            )
            scores *= scale
            if BIASED:
                scores += tl.load(bias + of_bias, mask=inside, other=0.0).to(tl.float32)
            lse_T = tl.load(lse + t * lse_t, mask=is_row, other=0.0)
            # A row that sees no key has the mask's own huge negative number as lse, which would cancel the mask.
            lse_T = tl.where(lse_T < hidden, float("inf"), lse_T)
            weights += share * tl.exp(scores - lse_T[:, None])
        if BIASED:
            bias += bias_h
        query += query_h
        lse += lse_h
        key += tl.where((head + 1) % repeats == 0, key_g, 0)
    total += t[:, None] * total_t + s[None, :] * total_s
    tl.store(total, tl.load(total, mask=inside) + weights, mask=inside)


def add_attention(
    total: Tensor,
    query: Tensor,
    key: Tensor,
    lse: Tensor,
    bias: Tensor | None,
    scale: float,
    shares: Sequence[float],
) -> None:
    """`blocks.add_attention` by the kernel, for tensors of whatever strides; query and key of one of `DTYPES`."""
    batch, heads, length, width = query.shape
    columns = key.shape[2]
    padded = max(16, triton.next_power_of_2(width))
    tile, warps = (64, 8) if query.element_size() == 2 and padded <= 128 else (32, 4)
    # Without a bias an address that nothing is read from.
    over = total[:, None] if bias is None else bias.to(total.device).expand(batch, heads, -1, -1)
    grid = (batch * triton.cdiv(length, tile) * triton.cdiv(columns, tile),)
    with torch.cuda.device_of(total):
        _add_tile[grid](
            total, query, key, lse, over, _on_device(tuple(shares), total.device),
            scale, torch.finfo(query.dtype).min / 2, heads, heads // key.shape[1], length, columns,
            *total.stride(), *query.stride(), *key.stride(), *lse.stride(), *over.stride(),
            BIASED=bias is not None, WIDTH=width, PADDED=padded, TILE=tile,
            num_warps=warps, num_stages=2,  # pyright: ignore[reportCallIssue]
        )  # fmt: skip


@lru_cache(1024)
def _on_device(shares: tuple[float, ...], device: torch.device) -> Tensor:
    # Kept, because a copy for each call would make the GPU wait for the CPU.
    return torch.tensor(shares, dtype=torch.float32, device=device)
