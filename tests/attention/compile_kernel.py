"""Compile the attention kernel for GPUs that need not be there, and print what each binary takes.

    TRITON_INTERPRET=0 python tests/attention/compile_kernel.py    one JSON object a line

`kernel.add_attention` is called as it is; Triton binds what it is launched with, compiles, and does not launch.
"""

import json
import re
import subprocess
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from cagsr.attention import kernel

CAPABILITIES = (80, 90, 100)  # A100, H100, B200
CASES = ((torch.float32, 128), (torch.bfloat16, 128))
MADE = kernel._add_tile


class Driver:
    """What Triton asks of a GPU before a launch. Its number is its capability, so that each has a cache of its own."""

    def __init__(self, capability: int):
        self.capability = capability

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)


class Warmed:
    """Stands for the kernel, and keeps what its launches compile to."""

    def __init__(self) -> None:
        self.binaries: list[Any] = []

    def __getitem__(self, grid: tuple[int]) -> Any:
        return partial(self._compile, grid)

    def _compile(self, grid: tuple[int], *arguments: Any, **options: Any) -> None:
        self.binaries.append(MADE.warmup(*arguments, grid=grid, **options))


def compiled(capability: int, dtype: torch.dtype, width: int) -> list[Any]:
    """For two batches of other lengths, of which one is of round numbers."""
    triton.runtime.driver.set_active(Driver(capability))
    warmed = kernel._add_tile = Warmed()  # type: ignore[assignment]
    for length, columns in ((67, 41), (128, 1)):
        query = torch.zeros(2, length, 6, width, dtype=dtype).transpose(1, 2)
        key = torch.zeros(2, columns, 2, width, dtype=dtype).transpose(1, 2)
        total, bias = torch.zeros(2, length, columns), torch.zeros(1, 1, length, columns)
        lse = torch.zeros(2, 6, length + 1)[:, :, 1:]
        kernel.add_attention(total, query, key, lse, bias, 0.125, [0.25] * 6)
    return warmed.binaries


def stack(binary: bytes, directory: Path) -> int:
    """Bytes of local memory that a thread takes: what did not fit its registers."""
    (directory / "kernel.cubin").write_bytes(binary)
    reader = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    usage = subprocess.check_output([reader, "-res-usage", directory / "kernel.cubin"], text=True)
    return int(re.findall(r"STACK:(\d+)", usage)[0])


def main() -> None:
    with TemporaryDirectory() as directory:
        for dtype, width in CASES:
            for capability in CAPABILITIES:
                binary, again = compiled(capability, dtype, width)
                found = {
                    "capability": capability,
                    "dtype": str(dtype),
                    "width": width,
                    "reused": again is binary,
                    "shared": binary.metadata.shared,
                    "stack": stack(binary.asm["cubin"], Path(directory)),
                }
                print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
