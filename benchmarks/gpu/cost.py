"""Part of the check: shapes, how time and memory are taken, and what reading costs beside the SDPA pass."""

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from benchmarks.gpu.exact import torch_path
from cagsr.attention import ATTENTION, capture, inspect

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Shapes:
    """Of models and inputs, and how often each is measured."""

    layers: int = 16
    hidden: int = 2048
    heads: int = 32
    groups: int = 8
    rows: int = 4
    lengths: tuple[tuple[int, int], ...] = ((512, 512), (2048, 512), (4096, 1024))  # prompt, response
    read: tuple[int, ...] = (1, 4, 16)
    shared: tuple[int, int, int, int] = (2, 8, 1024, 256)  # prompts, candidates of each, tokens of each
    small: Mapping[str, int] = field(  # of the models that share their prompts and are trained
        default_factory=lambda: {"layers": 8, "hidden": 512, "heads": 8, "context": 2048}
    )
    rounds: int = 11


TINY = Shapes(
    layers=2,
    hidden=24,
    heads=6,
    groups=2,
    rows=2,
    lengths=((7, 5),),
    read=(1, 2),
    shared=(2, 3, 7, 5),
    small={"layers": 2, "hidden": 16, "heads": 2, "context": 128},
    rounds=2,
)


def milliseconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        begun = time.perf_counter()
        work()
        return 1000 * (time.perf_counter() - begun)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end)


def peak(work: Callable[[], object], device: torch.device) -> float | None:
    """MiB beyond what is held before; None where they are not counted."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device)
    work()
    return (torch.cuda.max_memory_allocated(device) - held) / 2**20


def compared(ways: dict[str, Callable[[], object]], device: torch.device, rounds: int) -> dict[str, dict]:
    """Of each way its milliseconds, its times of the first way in the same round, and its memory.

    Each runs once before, so that compiling does not count; then they take turns in a random order.
    """
    peaks = {}
    for name, work in ways.items():
        work()
        peaks[name] = peak(work, device)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name in random.sample(list(ways), len(ways)):
            taken[name].append(milliseconds(ways[name], device))
    first = next(iter(taken.values()))
    found = {}
    for name, values in taken.items():
        ratios = [mine / other for mine, other in zip(values, first, strict=True)]
        found[name] = {
            "milliseconds": statistics.median(values),
            "times": [statistics.median(ratios), min(ratios), max(ratios)],
            "mebibytes": peaks[name],
        }
    return found


def overhead(device: torch.device, shapes: Shapes) -> list[dict[str, Any]]:
    """A forward pass by sdpa alone, while attention is read, and while the torch path reads it."""
    found = []
    for dtype in DTYPES:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=8000,
            hidden_size=shapes.hidden,
            intermediate_size=4 * shapes.hidden,
            num_hidden_layers=shapes.layers,
            num_attention_heads=shapes.heads,
            num_key_value_heads=shapes.groups,
            max_position_embeddings=8192,
        )
        with torch.device(device):
            net = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION, dtype=DTYPES[dtype])
        for prompt, response in shapes.lengths:
            for layers in shapes.read:
                ways = passes(net.eval(), device, shapes.rows, prompt, response, layers)
                case = {"dtype": dtype, "prompt": prompt, "response": response, "layers": layers}
                found.append(case | {"ways": compared(ways, device, shapes.rounds)})
                print(f"overhead: {case}", flush=True)
        del net
    return found


def passes(
    net: PreTrainedModel, device: torch.device, rows: int, prompt: int, response: int, layers: int
) -> dict[str, Callable[[], object]]:
    readable = inspect(net, range(net.config.num_hidden_layers - layers, net.config.num_hidden_layers))
    inputs = {
        "input_ids": torch.randint(3, 8000, (rows, prompt + response), device=device),
        "use_cache": False,
        "logits_to_keep": 1,
    }

    @torch.no_grad()
    def sdpa() -> object:
        return net(**inputs)

    @torch.no_grad()
    def read() -> Tensor:
        with capture(readable, slice(prompt - 1, prompt - 1 + response), slice(0, prompt)) as reading:
            net(**inputs)
        return reading.attention

    def by_torch() -> Tensor:
        with torch_path():
            return read()

    return {"sdpa": sdpa, "read": read, "read by the torch path": by_torch}
