"""Choice of the code that adds attention to a reading: the Triton kernel where it works, the torch path elsewhere."""

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from cagsr.attention import blocks

__all__ = ["add_attention"]

SHARES = (0.5, 0.0, 0.25, 0.125)
"""Of the four heads that the kernel is tried on."""


def add_attention(
    total: Tensor,
    query: Tensor,
    key: Tensor,
    lse: Tensor,
    bias: Tensor | None,
    scale: float,
    shares: Sequence[float],
) -> None:
    """`blocks.add_attention`, by the Triton kernel for tensors on CUDA that it can take."""
    add = blocks.add_attention
    if total.device.type == "cuda" and kernel_works(total.device, query.dtype, query.shape[-1]):
        from cagsr.attention.kernel import add_attention as add
    add(total, query, key, lse, bias, scale, shares)


@cache
def kernel_works(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether the kernel takes queries of this dtype and width, compiles here, and agrees with the torch path.

    It is compiled where it runs, which takes Triton, a GPU of compute capability 8.0 or newer, and a C compiler. A
    warning says what is wrong where Triton is installed and the kernel is of no use all the same.
    """
    if find_spec("triton") is None or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    from cagsr.attention import kernel

    if dtype not in kernel.DTYPES or width > kernel.WIDEST:
        return False
    try:
        difference = _difference(kernel.add_attention, device, dtype, width)
    except Exception as error:  # whatever a compiler may say: a slower reading is better than none
        problem = f"{type(error).__name__}: {error}"
    else:
        if difference < 1e-4:
            return True
        problem = f"a result is {difference:.1e} beside that of the torch path"
    warnings.warn(
        f"The attention kernel does not work on {device} in {dtype}, so that reading attention takes longer: {problem}",
        RuntimeWarning,
        stacklevel=2,
    )
    return False


def _difference(add: Callable[..., None], device: torch.device, dtype: torch.dtype, width: int) -> float:
    """The largest difference of ``add`` on the device from the torch path on the CPU; it may be NaN or inf."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("cpu"):
        query = torch.randn(2, 4, 67, width, generator=generator).to(dtype)
        key = torch.randn(2, 2, 71, width, generator=generator).to(dtype)
        hidden = torch.rand(2, 1, 67, 71, generator=generator) < 0.3
        expected = torch.zeros(2, 67, 71, dtype=torch.float32)
    bias = torch.zeros_like(hidden, dtype=torch.float32).masked_fill(hidden, -torch.inf)
    scale = width**-0.5
    lse = blocks.log_sum_exp(query, key, bias, scale)
    blocks.add_attention(expected, query, key, lse, bias, scale, SHARES)
    found = torch.zeros_like(expected, device=device)
    add(found, *(each.to(device) for each in (query, key, lse, bias)), scale, SHARES)
    return float((found.cpu() - expected).abs().max())
