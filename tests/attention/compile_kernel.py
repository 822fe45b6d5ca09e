"""Compile the attention kernel for GPUs that need not be there, and print what each binary takes.

    TRITON_INTERPRET=0 python tests/attention/compile_kernel.py    one JSON object a line

The launch that `kernel.add_attention` makes is caught, and its kernel compiled with what the launch was given.
"""

import json
import re
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cagsr.attention import kernel

CAPABILITIES = (80, 90, 100)  # A100, H100, B200
CASES = ((torch.float32, 256), (torch.bfloat16, 128))
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}
CONSTANT = ("BIASED", "WIDTH", "PADDED", "TILE")
CONTIGUOUS = ("total_s", "query_d", "key_d", "lse_t", "bias_s")
ALIGNED = ("total", "query", "key", "query_n", "query_h", "query_t", "key_n", "key_g", "key_s")
MADE = kernel._add_tile


class Caught:
    """Stands for the kernel, and keeps what it is launched with."""

    def __getitem__(self, grid: tuple[int]) -> "Caught":
        return self

    def __call__(self, *arguments: Any, **options: Any) -> None:
        self.options = options


def launched(dtype: torch.dtype, width: int) -> dict[str, Any]:
    caught = kernel._add_tile = Caught()  # type: ignore[assignment]
    query, total = torch.zeros(1, 1, 1, width, dtype=dtype), torch.zeros(1, 1, 1)
    kernel.add_attention(total, query, query, total, total[None], 1.0, 1.0)
    return caught.options


def source(options: dict[str, Any], pointer: str) -> ASTSource:
    def at(name: str) -> tuple[int]:
        return (MADE.arg_names.index(name),)

    constant = {name: options.pop(name) for name in CONSTANT} | dict.fromkeys(CONTIGUOUS, 1)
    types = dict.fromkeys(MADE.arg_names, "i32") | dict.fromkeys(constant, "constexpr")
    types |= dict.fromkeys(("scale", "share", "hidden"), "fp32")
    types |= dict.fromkeys(("total", "lse", "bias"), "*fp32") | dict.fromkeys(("query", "key"), pointer)
    aligned = {at(name): [["tt.divisibility", 16]] for name in ALIGNED}
    return ASTSource(MADE, types, {at(name): value for name, value in constant.items()}, aligned)


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
                options = launched(dtype, width)
                code = source(options, POINTERS[dtype])
                binary = triton.compile(code, GPUTarget("cuda", capability, 32), options)
                found = {
                    "capability": capability,
                    "dtype": str(dtype),
                    "width": width,
                    "shared": binary.metadata.shared,
                    "stack": stack(binary.asm["cubin"], Path(directory)),
                }
                print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
