"""Part of the check: attention as it is read on a device, by the kernel and by the torch path, against float64."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend

from cagsr.attention import Readable, capture
from cagsr.attention import dispatch as kernel_choice
from cagsr.attention import sdpa_lse as fused
from cagsr.attention.capture import attention_forward

LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-4}
"""What A, in [0, 1], may be off by from float64 on the same inputs."""


class Attention(nn.Module):
    is_causal = True

    def __init__(self, repeats: int):
        super().__init__()
        self.num_key_value_groups = repeats


@dataclass(frozen=True)
class Case:
    """query [N H T D], key and value [N G T D], in one dtype; what of a mask and a position bias there is."""

    name: str
    query: Tensor
    key: Tensor
    value: Tensor
    masks: dict[str, Tensor]

    @property
    def repeats(self) -> int:
        return self.query.shape[1] // self.key.shape[1]

    def exact(self) -> Tensor:
        """A [N T T] in float64, from the definition; 0 in rows that see nothing."""
        key = self.key.repeat_interleave(self.repeats, 1)
        scores = self.query.double() @ key.double().mT * self.query.shape[-1] ** -0.5
        if "position_bias" in self.masks:
            scores += self.masks["position_bias"].double()
        earlier = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        seen = self.masks.get("attention_mask", earlier)
        return scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0).mean(1)

    @torch.no_grad()
    def read(self, device: torch.device) -> Tensor:
        module = Attention(self.repeats)
        query, key, value = (each.to(device) for each in (self.query, self.key, self.value))
        masks = {"attention_mask": None} | {name: each.to(device) for name, each in self.masks.items()}
        with capture(Readable("causal", (module,), (0,), 1)) as reading:
            attention_forward(module, query, key, value, **masks)
        return reading.attention.cpu().double()


def cases(dtype: torch.dtype, heads: int, groups: int, length: int, width: int) -> Iterator[Case]:
    def laid_out(count: int) -> Tensor:
        return torch.randn(2, length, count, width).transpose(1, 2).to(dtype)

    # The second row begins with three keys of padding, so that its first three queries see nothing.
    padded = torch.ones(2, 1, length, length, dtype=torch.bool).tril()
    padded[1, :, :, :3] = False
    bias = torch.randn(1, heads, length, length).to(dtype)
    masks = {"causal": {}, "padded": {"attention_mask": padded}, "position bias": {"position_bias": bias}}
    for name, given in masks.items():
        yield Case(name, laid_out(heads), laid_out(groups), laid_out(groups), given)


@contextmanager
def torch_path() -> Iterator[None]:
    """Without the kernel."""
    with patch.object(kernel_choice, "kernel_works", lambda *_: False):
        yield


@contextmanager
def sdpa_kernels() -> Iterator[list[str]]:
    """The names of the kernels that torch takes for sdpa, as far as it is asked on CUDA."""
    asked, ask = [], fused._choice

    def remembered(*given: Any) -> int:
        choice = ask(*given)
        asked.append(SDPBackend(choice).name.lower().removesuffix("_attention"))
        return choice

    with patch.object(fused, "_choice", remembered):
        yield asked


def uses_kernel(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    return device.type == "cuda" and kernel_choice.kernel_works(device, dtype, width)


def correctness(
    device: torch.device, heads: int, groups: int, length: int, width: int
) -> list[dict[str, Any]]:
    """The largest difference of A from float64, as it is read and as the torch path reads it."""
    found = []
    for dtype, limit in LIMITS.items():
        for shared_by in (heads, groups):
            for case in cases(dtype, heads, shared_by, length, width):
                expected = case.exact()
                with sdpa_kernels() as asked:
                    as_read = case.read(device)
                with torch_path():
                    by_torch = case.read(device)
                found.append(
                    {
                        "dtype": str(dtype).removeprefix("torch."),
                        "heads": f"{heads}/{shared_by}",
                        "case": case.name,
                        "sdpa": asked[0] if asked else "-",
                        "by": "kernel" if uses_kernel(device, dtype, width) else "torch path",
                        "difference": float((as_read - expected).abs().max()),
                        "torch_path": float((by_torch - expected).abs().max()),
                        "limit": limit,
                    }
                )
    return found
