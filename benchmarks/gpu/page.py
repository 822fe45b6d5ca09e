"""Part of the check: what was found as docs/gpu.json, and as a page to read, docs/gpu.md."""

import datetime
import json
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "triton", "transformers", "accelerate")

HEAD = """# On a GPU

What `make gpu-check` finds on a machine with a CUDA GPU, without network: whether attention is read exactly there, and
what it costs.
"""

MISSING = """
**The figures are missing.** No GPU could be had so far. On a machine that has one, `make gpu-check` writes this page
anew with its figures. Until then this is known, without a GPU:

- The Triton kernel (`src/cagsr/attention/kernel.py`) agrees with the torch path and with float64 when Triton interprets
  it on a CPU, and compiles for compute capabilities 8.0, 9.0 and 10.0 with everything in registers (`tests/attention`).
  It was not run as compiled, and its tile sizes were not tuned.
- The log-sum-exp comes from the kernel that sdpa takes (flash, memory-efficient or cuDNN's). What they are called with
  was checked against torch's declarations; their numbers were not seen.
- Before its first use on a device the kernel is tried on a small case. Where it does not compile, or does not agree
  with the torch path, a warning says so and the torch path is taken.
"""


def about(device: torch.device) -> dict[str, Any]:
    """Which device, which versions, which day."""
    on_gpu = device.type == "cuda"
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else f"CPU ({platform.machine()})",
        "capability": ".".join(map(str, torch.cuda.get_device_capability(device))) if on_gpu else None,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if on_gpu else None,
        "versions": versions,
        "date": datetime.date.today().isoformat(),
    }


def disagreeing(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is off from float64 by more than its limit, or by NaN."""
    return [
        case
        for case in found["correctness"]
        if not (case["difference"] <= case["limit"] and case["torch_path"] <= case["limit"])
    ]


def save(found: Mapping[str, Any], directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "gpu.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (directory / "gpu.md").write_text(page(found), encoding="utf-8")


def page(found: Mapping[str, Any] | None) -> str:
    """Markdown; None: there are no figures yet."""
    if found is None:
        return HEAD + MISSING
    sections = (_where, _correctness, _overhead, _sharing, _steps)
    return HEAD + "".join(f"\n{section(found)}\n" for section in sections)


def _where(found: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    taken = ", ".join(f"{dtype}: {'yes' if yes else 'no'}" for dtype, yes in found["kernel"].items())
    return (
        f"{found['device']}, compute capability {found['capability']}, CUDA {found['cuda']}, cuDNN {found['cudnn']};\n"
        f"{versions}.\nThe Triton kernel is used: {taken}. Measured {found['date']}; all figures are in "
        "`docs/gpu.json`."
    )


def _correctness(found: Mapping[str, Any]) -> str:
    bad = disagreeing(found)
    said = "Everything is within its limit." if not bad else f"**{len(bad)} cases are beyond their limit.**"
    rows = (
        (
            *(case[name] for name in ("dtype", "heads", "case", "sdpa", "by")),
            *(f"{case[name]:.1e}" for name in ("difference", "torch_path", "limit")),
        )
        for case in found["correctness"]
    )
    names = ("inputs", "heads", "case", "sdpa's kernel", "read by", "off by", "torch path off by", "limit")
    return (
        "## Exactness\n\nThe largest difference of A, which lies in [0, 1], from float64 on the same inputs. "
        f"{said}\n\n" + _table(names, rows)
    )


def _overhead(found: Mapping[str, Any]) -> str:
    rows = (
        (case["dtype"], case["prompt"], case["response"], case["layers"], *_way(name, way))
        for case in found["overhead"]
        for name, way in case["ways"].items()
    )
    names = ("dtype", "prompt", "response", "layers read", "way", "ms", "times sdpa", "MiB")
    return (
        "## Reading beside the SDPA pass\n\nA forward pass of a Llama shape by CUDA events: median milliseconds, "
        "median and range of the ratio\nwithin a round, and the peak of memory beyond what was held before.\n\n"
        + _table(names, rows)
    )


def _sharing(found: Mapping[str, Any]) -> str:
    rows = (
        (case["architecture"], case["dtype"], case["what"], f"{case['difference']:.1e}", *_way(name, way))
        for case in found["sharing"]
        for name, way in case["ways"].items()
    )
    names = ("model", "dtype", "what", "A differs by", "way", "ms", "times", "MiB")
    return (
        "## A prompt computed once for its responses\n\nA small model from nothing; ratios are to a prompt that is "
        "computed for each.\n\n" + _table(names, rows)
    )


def _steps(found: Mapping[str, Any]) -> str:
    rows = (
        (
            step["architecture"],
            "bf16 autocast" if step["precision"] == "bf16" else "float32",
            *(f"{step[name]:.1f}" for name in ("collect", "update")),
            _mebibytes(step["mebibytes"]),
            step["tokens"],
            *(f"{step[name]:.4g}" for name in ("loss", "grad_norm")),
        )
        for step in found["steps"]
    )
    names = (
        "model",
        "precision",
        "collect, ms",
        "update, ms",
        "MiB",
        "response tokens",
        "loss",
        "gradient norm",
    )
    return (
        "## A whole step\n\nSampling, observing, reward and update of a small model from nothing.\n\n"
        + _table(names, rows)
    )


def _way(name: str, way: Mapping[str, Any]) -> tuple[str, ...]:
    middle, least, most = way["times"]
    ratio = f"{middle:.3f} ({least:.3f}-{most:.3f})"
    return name, f"{way['milliseconds']:.2f}", ratio, _mebibytes(way["mebibytes"])


def _mebibytes(count: float | None) -> str:
    return "-" if count is None else f"{count:.0f}"


def _table(names: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [list(names), *(list(map(str, row)) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
