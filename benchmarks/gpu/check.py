"""Is attention read exactly on a GPU, and what does it cost there?

    python -m benchmarks.gpu.check  some minutes on a CUDA GPU, without network; writes docs/gpu.md and docs/gpu.json

Exit code 0: everything agrees with float64. 1: something does not, and the page says what. 2: there is no CUDA GPU.
``--device cpu`` runs the same on tiny shapes, to test this program; its figures mean nothing.
"""

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.cost import DTYPES, TINY, Shapes, overhead
from benchmarks.gpu.exact import correctness, uses_kernel
from benchmarks.gpu.page import about, disagreeing, page, save
from benchmarks.gpu.policies import sharing, steps

DOCS = Path(__file__).parents[2] / "docs"


def check(device: torch.device, shapes: Shapes) -> dict[str, Any]:
    random.seed(0)
    torch.manual_seed(0)
    width = shapes.hidden // shapes.heads
    length = shapes.lengths[0][0] + 3
    return {
        **about(device),
        "kernel": {name: uses_kernel(device, dtype, width) for name, dtype in DTYPES.items()},
        "correctness": correctness(device, shapes.heads, shapes.groups, length, width),
        "overhead": overhead(device, shapes),
        "sharing": sharing(device, shapes),
        "steps": steps(device, shapes),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: tiny shapes, a test")
    parser.add_argument("--output", type=Path, help="directory of gpu.md and gpu.json; default: docs on cuda")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("gpu-check needs a CUDA GPU and a CUDA build of torch; nothing was measured.", file=sys.stderr)
        return 2
    on_gpu = options.device == "cuda"
    found = check(torch.device("cuda:0" if on_gpu else "cpu"), Shapes() if on_gpu else TINY)
    output = options.output or (DOCS if on_gpu else None)
    if output is not None:
        save(found, output)
    print(page(found))
    return 1 if disagreeing(found) else 0


if __name__ == "__main__":
    sys.exit(main())
