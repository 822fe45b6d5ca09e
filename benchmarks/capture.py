"""What reading attention costs: time and memory against the same SDPA pass, and against eager attention.

    python benchmarks/capture.py            prints the table
    python benchmarks/capture.py --write    also writes docs/performance.md

One process, one model (Llama shape, 12 layers, hidden 512, 8 heads), prompt and response of 512 tokens each,
4 of the 12 layers read. The ways take turns in a random order, so that whatever else the machine does falls
on all of them alike; a ratio is taken within each round, and the table gives its median and range. Seconds are
those that the process spent computing: waiting for a busy machine is not a cost of attention.
"""

import argparse
import datetime
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from cagsr.attention import ATTENTION, Readable, capture, inspect

S = T = 512
LAYERS_READ = (8, 9, 10, 11)
PAGE = Path(__file__).parent.parent / "docs" / "performance.md"


def model() -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8000,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=12,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=S + T,
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION).eval()


def batch(prompts: list[int]) -> dict[str, Tensor]:
    """Prompts of the given lengths, padded on the left to S, each with a response of T tokens."""
    ids = torch.randint(3, 8000, (len(prompts), S + T))
    mask = (torch.arange(S + T) >= S - torch.tensor(prompts)[:, None]).long()
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
    }


def ways(
    net: PreTrainedModel, readable: Readable, inputs: dict[str, Tensor]
) -> dict[str, Callable[[], object]]:
    """The three passes that are compared. Switching the implementation only sets a field of the config."""

    def sdpa() -> object:
        net.set_attn_implementation("sdpa")
        return net(**inputs, use_cache=False).logits

    def read() -> object:
        net.set_attn_implementation(ATTENTION)
        with capture(readable, rows=slice(S - 1, S - 1 + T), columns=slice(0, S)) as reading:
            logits = net(**inputs, use_cache=False).logits
        return logits, reading.attention

    def eager() -> object:
        net.set_attn_implementation("eager")
        output = net(**inputs, use_cache=False, output_attentions=True)
        chosen = [output.attentions[layer][:, :, S - 1 : S - 1 + T, :S].mean(1) for layer in LAYERS_READ]
        return output.logits, torch.stack(chosen).mean(0)

    return {"sdpa": sdpa, "capture": read, "eager": eager}


def seconds(passes: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {name: [] for name in passes}
    order = list(passes)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            start = time.process_time()
            passes[name]()
            taken[name].append(time.process_time() - start)
    return taken


def peak_bytes(work: Callable[[], object]) -> int:
    """The most that PyTorch's allocator held at one time during ``work``, beyond what it held before."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        work()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f}-{max(values):.3f})"


@torch.no_grad()
def measure(rounds: int) -> list[str]:
    net = model()
    readable = inspect(net, layers=LAYERS_READ)
    lines = [
        "| Batch | Way | CPU seconds: median (range) | Times SDPA: median (range) | Memory beyond SDPA |",
        "|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    for title, prompts in {"no padding": [S], "padded prompt": [389]}.items():
        passes = ways(net, readable, batch(prompts))
        seconds(passes, 1)
        taken = seconds(passes, rounds)
        peaks = {name: peak_bytes(work) for name, work in passes.items()}
        for name in passes:
            ratios = [mine / sdpa for mine, sdpa in zip(taken[name], taken["sdpa"], strict=True)]
            extra = (peaks[name] - peaks["sdpa"]) / 2**20
            lines.append(f"| {title} | {name} | {spread(taken[name])} | {spread(ratios)} | {extra:.1f} MiB |")
            print(lines[-1], flush=True)
    return lines


def page(lines: list[str], rounds: int) -> str:
    table = "\n".join(lines)
    return f"""# What reading attention costs

`python benchmarks/capture.py --write` made this page: a Llama shape (12 layers, hidden 512, 8 heads, float32),
one row, prompt and response of {S} tokens each, {len(LAYERS_READ)} of 12 layers read.

- **sdpa**: the forward pass alone, by transformers' own SDPA attention.
- **capture**: the same pass while attention is read.
- **eager**: the pass with `output_attentions=True`, from which the same A is taken.

{table}

{rounds} rounds in one process, the ways in random order within a round; ratios are taken within the round.
Seconds are those that the process spent computing, so that waiting for a busy machine does not count. Memory is
the highest sum that PyTorch's allocator held during the pass (from its profiler), less the same for sdpa; A
itself, 1 MiB, is part of it. Each layer's own [H Q K] weights would be 32 MiB.

Measured {datetime.date.today()} on {os.cpu_count()} cores, CPU ({platform.machine()}), {torch.get_num_threads()}
thread(s) used; torch {torch.__version__}, transformers {transformers.__version__}.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="write docs/performance.md")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    random.seed(0)
    lines = measure(options.rounds)
    if options.write:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(lines, options.rounds), encoding="utf-8")


if __name__ == "__main__":
    main()
