"""How a step's time and memory grow with K, S, T, layers and width, and how far it is from the least possible."""

from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import torch

from benchmarks.protocol import cpu, exponent, peak_bytes, spread, take_turns
from benchmarks.record import Part, Plan, Table
from benchmarks.subjects import Shape, saved, step_of, whole_step

__all__ = ["floor_flops", "measure"]

BASE = Shape(
    layers=4, hidden=128, vocabulary=2000, prompts=2, candidates=8, prompt_tokens=64, response_tokens=32
)
AXES = {
    "candidates": ("K", [2, 4, 8, 16]),
    "prompt_tokens": ("S", [32, 64, 128, 256]),
    "response_tokens": ("T", [16, 32, 64, 128]),
    "layers": ("layers", [2, 4, 8]),
    "hidden": ("hidden", [64, 128, 256, 512]),
}
QUICK = {"candidates": ("K", [2, 4, 8]), "layers": ("layers", [1, 2, 4])}
SQUARE = 1024
MIB = 2**20
ABOUT = f"""A step with the preset `coverage` ({BASE}; {BASE.prompts} ragged prompts, K {BASE.candidates}, S
{BASE.prompt_tokens}, T {BASE.response_tokens}), one of its sizes changed at a time; one pass for all responses.

**Floor** is the time that the multiplications alone would take at the rate at which this machine multiplies two
{SQUARE} x {SQUARE} matrices, measured in the same rounds. They are those that no step of this kind can do without:
each prompt once for its group and each response token once, five times over (sampled once, scored by the reference
once, and trained, whose backward pass counts twice), without padding. **Exponent** b is that of size ** b, fitted to
the medians: where it is small, most of the time does not depend on that size, as the fixed cost of a small
operation does not."""


def floor_flops(shape: Shape) -> float:
    """The multiplications and additions that a step of a Llama shape of `new_model` needs at the least."""
    n, t, h = shape.prompts * shape.candidates, shape.response_tokens, shape.hidden
    prompt_tokens, response_tokens = sum(shape.lengths), n * t
    # Four h x h projections, and three of h x 2h in the feed-forward layer.
    linear = 2 * (4 + 3 * 2) * h * h * (prompt_tokens + response_tokens)
    pairs = sum(s * (s + 1) / 2 + shape.candidates * (t * s + t * (t + 1) / 2) for s in shape.lengths)
    head = 2 * h * shape.vocabulary * response_tokens
    return 5 * (shape.layers * (linear + 4 * h * pairs) + head)


def measure(plan: Plan) -> Part:
    axes = QUICK if plan.quick else AXES
    shapes = {
        f"{label} = {value}": replace(BASE, **{field: value})
        for field, (label, values) in axes.items()
        for value in values
    }
    left, right = torch.rand(SQUARE, SQUARE), torch.rand(SQUARE, SQUARE)
    with ExitStack() as stack:
        ways = {
            name: partial(whole_step, *step_of(shape, stack.enter_context(saved(shape))))
            for name, shape in shapes.items()
        }
        taken = take_turns({**ways, "matrix": partial(torch.mm, left, right)}, plan.rounds)
        memory = {name: peak_bytes(work) / MIB for name, work in ways.items()}
    rate = 2 * SQUARE**3 / spread(cpu(taken["matrix"])).median
    seconds = {name: spread(cpu(taken[name])) for name in shapes}
    floor = {name: floor_flops(shape) / rate for name, shape in shapes.items()}
    rows = [
        [
            name,
            seconds[name].text(3),
            f"{memory[name]:.1f} MiB",
            f"{floor[name]:.3f}",
            f"{seconds[name].median / floor[name]:.1f}x",
        ]
        for name in shapes
    ]
    fitted = [
        [
            label,
            *(f"{exponent(values, [of[f'{label} = {value}'] for value in values]):.2f}" for of in measured),
        ]
        for label, values in axes.values()
        for measured in [({name: each.median for name, each in seconds.items()}, memory, floor)]
    ]
    tables = [
        Table("", ["Step", "Seconds", "Memory", "Floor: seconds", "Times the floor"], rows),
        Table("Exponents:", ["Size", "Time", "Memory", "Floor"], fitted),
    ]
    about = f"{ABOUT}\n\nThe rate was {rate / 1e9:.1f} GFLOP/s."
    return Part("How a step grows", about, tables, turns=taken)
