"""A whole step against TRL's GRPOTrainer: same model, prompts, K, lengths, kind of optimizer."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.protocol import Bound, Spread, Taken, cpu, peak_bytes, ratios, spread, take_turns
from benchmarks.record import Part, Plan, Table
from benchmarks.subjects import Shape, saved, segment_count, step_of, whole_step
from benchmarks.trl_step import SETTINGS, EagerCoverage, TrlStep

SHAPE = Shape(prompts=2, candidates=8, response_tokens=32)
QUICK = replace(SHAPE, layers=2, hidden=32, vocabulary=300, response_tokens=8)
PROMPT_TOKENS = {"1:4": 8, "1:1": 32, "2:1": 64, "6:1": 192}
CONSTANT, EAGER, COMPACT = "TRL", "TRL, eager reward", "TRL, compact head"
BY_TRL = (CONSTANT, EAGER, COMPACT)
COVERAGE, ROBUST = "cagsr, coverage", "cagsr, robust"
ALSO = {"2:1": (COMPACT, ROBUST), "6:1": (COMPACT,)}
PROMISED = {
    CONSTANT: {"1:4": 1.0, "2:1": 1.8, "6:1": 2.8},
    EAGER: {"2:1": 2.2, "6:1": 3.4},
}
ABOUT = f"""{SHAPE}; {SHAPE.prompts} prompts a step, the longest S tokens and the shortest half of that, K =
{SHAPE.candidates} responses of T = {SHAPE.response_tokens} tokens each. Every response is that long on both sides,
because both are given `min_new_tokens`. One step is one optimizer step on all of them, in one forward pass.

- **{CONSTANT}**: one step of `trainer.train()`, TRL's own loop, whose reward function returns constants.
- **{EAGER}**: the same; its reward function runs a frozen copy of the base with eager attention and
  `output_attentions=True` over all prompts and responses, and computes coverage. It is the cheapest such function:
  one pass, no language-model head, none of the preset's other terms.
- **{COMPACT}**, where prompts are long: TRL with constants, changed in one place, so that its head computes the
  responses' positions only. It does so on a GPU; on a CPU it computes the prompts' too, and no setting says otherwise.
- **{COVERAGE}**: `Step.collect`, the step's row of metrics, `Step.update`; the reward is the preset `coverage`, from
  captured attention.
- **{ROBUST}**, at one S:T: the same with the preset `robust`, which asks the observer once more for each of a prompt's
  pieces ({segment_count(PROMPT_TOKENS["2:1"])} here).

TRL's settings: {", ".join(f"`{name}={value}`" for name, value in SETTINGS.items())},
`per_device_train_batch_size={SHAPE.prompts * SHAPE.candidates}`, `num_generations={SHAPE.candidates}`,
`max_completion_length={SHAPE.response_tokens}`; all else is its default: SDPA attention, its fused head, fused AdamW,
and no second pass for the old log-probabilities, which are those of the update. Its
`use_transformers_continuous_batching` is off: on the CPU, tried by hand, it took seven times as long."""
MIB = 2**20


def constants(prompts: list[str], **_: Any) -> list[float]:
    """A reward that costs nothing and gives every group something to learn."""
    return [float(row % SHAPE.candidates) for row in range(len(prompts))]


def measure_at(
    shape: Shape, plan: Plan, also: Sequence[str]
) -> tuple[dict[str, list[Taken]], dict[str, int]]:
    """Every way's turns, and the bytes that one more step held at the most."""
    with saved(shape) as directory, ExitStack() as stack:
        frozen = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()
        eager = EagerCoverage(frozen, AutoTokenizer.from_pretrained(directory))
        trl = TrlStep(shape, directory, constants)
        stack.callback(trl.end)

        def of_trl(reward: Any, compact: bool = False) -> None:
            trl.reward, trl.compact = reward, compact
            trl()

        ways = {
            CONSTANT: partial(of_trl, constants),
            EAGER: partial(of_trl, eager),
            COVERAGE: partial(whole_step, *step_of(shape, directory, "coverage")),
        }
        if COMPACT in also:
            ways[COMPACT] = partial(of_trl, constants, compact=True)
        if ROBUST in also:
            ways[ROBUST] = partial(whole_step, *step_of(shape, directory, "robust"))
        return take_turns(ways, plan.rounds), {name: peak_bytes(work) for name, work in ways.items()}


def measure(plan: Plan) -> Part:
    rows: list[list[str]] = []
    turns: dict[str, list[Taken]] = {}
    faster: dict[tuple[str, str, str], Spread] = {}
    for name, tokens in PROMPT_TOKENS.items():
        shape = replace(QUICK if plan.quick else SHAPE, prompt_tokens=tokens)
        taken, peaks = measure_at(shape, plan, ALSO.get(name, ()))
        turns |= {f"{name}: {way}": each for way, each in taken.items()}
        for way, each in taken.items():
            over = {trl: ratios(cpu(taken[trl]), cpu(each)) for trl in BY_TRL if trl in taken}
            faster |= {(trl, way, name): ratio for trl, ratio in over.items()}
            ratio_cells = [over[trl].text() if trl in over else "" for trl in BY_TRL]
            rows.append([name, way, spread(cpu(each)).text(), *ratio_cells, f"{peaks[way] / MIB:.0f} MiB"])
    bounds = [
        Bound(
            f"{COVERAGE} against {way}, S:T = {name}, K = 8: times faster",
            "least",
            limit,
            faster[way, COVERAGE, name],
            "x",
        )
        for way, limits in PROMISED.items()
        for name, limit in limits.items()
    ]
    columns = ["S:T", "Way", "Seconds", *(f"{trl} / this" for trl in BY_TRL), "Memory"]
    return Part("A whole step against TRL", ABOUT, [Table("", columns, rows)], bounds, turns)
