"""What reading attention costs over long prompts: time and memory against scoring the same responses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.protocol import Bound, Taken, cpu, peak_bytes, ratios, spread, take_turns
from benchmarks.real_model import SHAPE as SMOLLM2
from benchmarks.real_model import random_model
from benchmarks.record import Part, Plan, Table
from benchmarks.subjects import Shape
from cagsr.attention import Readable
from cagsr.models.load_policy import load_policy
from cagsr.models.policy import Policy
from cagsr.models.predictions import LARGE
from cagsr.types import EVERYTHING, Prompt, Rollout, Wanted

__all__ = ["measure"]

MIB = 2**20
SHAPE = replace(SMOLLM2, layers=1, vocabulary=2000, prompts=1, response_tokens=512)
LEARNT, EVERY, BEFORE, SCORED = (
    "learnt heads, by piece",
    "all heads, by piece",
    "all heads, all [N T S]",
    "scoring",
)
ABOUT = f"""One prompt of S tokens in J pieces, and K {SHAPE.candidates} responses of T {SHAPE.response_tokens} tokens,
by a single layer as SmolLM2-135M has 30 ({SHAPE}, 3 heads of keys): attention and what is read of it grow with the
layers alike.

- **{SCORED}**: `logprobs`, the pass alone.
- **{LEARNT}**: `observe` for a reward that reads attention by piece, one head of nine. `reward.heads: learn` reads at
  most 24 of that model's 270, .8 of nine.
- **{EVERY}**: the same, all heads.
- **{BEFORE}**: `observe` for a signal of one's own, which may read attention and log-probabilities of every token of
  the prompt. Until rewards said what they read, it was so for all.

By piece is read what would take {LARGE * 4 // MIB} MiB by token: at the shortest prompt nothing. Memory is what the
peak is beyond that of scoring."""


@dataclass(frozen=True)
class Size:
    prompt: int
    pieces: int

    def __str__(self) -> str:
        return f"S {self.prompt}, J {self.pieces}"


SIZES = [Size(2048, 32), Size(8192, 128), Size(16384, 256)]
PROMISED = SIZES[-1]


def ways(shape: Shape, size: Size) -> dict[str, Callable[[], object]]:
    with TemporaryDirectory() as name:
        directory = random_model(shape, Path(name))
        longest = size.prompt + shape.response_tokens
        model = AutoModelForCausalLM.from_pretrained(directory, max_position_embeddings=longest)
        policy = load_policy(model, AutoTokenizer.from_pretrained(directory))
    heads, drawn = policy.readable, partial(torch.randint, 2, shape.vocabulary)
    prompt = Prompt("", tuple(drawn((size.prompt,)).tolist()), (), (), 0)
    one = heads.weighted({heads.layers[0]: [1.0, *[0.0] * (shape.heads - 1)]})
    written = drawn((shape.candidates, shape.response_tokens)).tolist()
    rollout = policy.given_ids([prompt], written, [""] * len(written))

    def pieces(prompts: Sequence[Prompt], prompt_mask: Tensor) -> Tensor:
        column = torch.arange(size.prompt) * size.pieces // size.prompt
        return (column == torch.arange(size.pieces)[:, None])[None]

    wanted = Wanted(by_token=False, prompt_logprobs=False, pieces=pieces)
    return {
        SCORED: lambda: policy.logprobs(rollout),
        LEARNT: lambda: observe(policy, rollout, one, wanted),
        EVERY: lambda: observe(policy, rollout, heads, wanted),
        BEFORE: lambda: observe(policy, rollout, heads, EVERYTHING),
    }


def observe(policy: Policy, rollout: Rollout, heads: Readable, wanted: Wanted) -> object:
    policy.readable = heads
    return policy.observe(rollout, wanted)


def measure(plan: Plan) -> Part:
    sizes, shape = SIZES, SHAPE
    if plan.quick:
        sizes, shape = [Size(256, 8)], replace(SHAPE, hidden=36, vocabulary=512, response_tokens=16)
    rows: list[list[str]] = []
    bounds: list[Bound] = []
    turns: dict[str, list[Taken]] = {}
    for size in sizes:
        passes = ways(shape, size)
        # Of minutes-long passes a few rounds must do.
        taken = take_turns(passes, min(plan.rounds, 3), warm=size != sizes[0])
        peaks = {name: peak_bytes(work) / MIB for name, work in passes.items()}
        turns |= {f"{size}: {name}": each for name, each in taken.items()}
        over = {name: ratios(cpu(each), cpu(taken[SCORED])) for name, each in taken.items()}
        extra = {name: peak - peaks[SCORED] for name, peak in peaks.items()}
        for name in passes:
            seconds = spread(cpu(taken[name])).text(2)
            rows.append([str(size), name, seconds, over[name].text(3), f"{extra[name]:.1f} MiB"])
        if size == PROMISED:
            what = f"{LEARNT}, {size}, T {shape.response_tokens}, K {shape.candidates}"
            bounds = [
                Bound(f"{what}: time of scoring", "most", 1.05, over[LEARNT], "x"),
                Bound(f"{what}: extra memory", "most", 64, spread([extra[LEARNT]]), " MiB"),
            ]
    columns = ["Size", "Way", "Seconds", "Times scoring", "Memory beyond scoring"]
    return Part("Reading attention over long prompts", ABOUT, [Table("", columns, rows)], bounds, turns)
