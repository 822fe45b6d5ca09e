"""How long a real model's step takes: rewards side by side, rounded, and against TRL."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from peft import LoraConfig
from torch import Tensor

from benchmarks.against_trl import COMPACT, CONSTANT, constants
from benchmarks.protocol import Bound, Spread, Taken, cpu, peak_bytes, ratios, spread, take_turns
from benchmarks.real_model import (
    ATTENTION,
    CASES,
    LEARNT,
    QUICK,
    ROUNDED,
    SHAPE,
    UNREAD,
    WAYS,
    WRITING,
    Case,
    build,
    cached_model,
    chats,
    config_of,
    floor_flops,
    subject,
)
from benchmarks.record import Part, Plan, Table
from benchmarks.step import PARTS, Clock, noting, shares, watch
from benchmarks.subjects import Shape, whole_step
from benchmarks.trl_step import TrlStep
from cagsr.models.policy import Policy
from cagsr.models.writing_copy import WritingCopy
from cagsr.types import Rollout

__all__ = ["errors", "measure"]

FEW = 2
SQUARE, PRODUCTS = 1024, 50
MIB = 2**20
ABOUT = f"""SmolLM2-135M-Instruct (30 layers, hidden 576, vocabulary 49152), %s, with the LoRA adapter of
examples/instruct.yaml; {SHAPE.prompts} chats a step, K = {SHAPE.candidates} responses of T = {SHAPE.response_tokens}
tokens each, no response ends early. The chats ask for a description of restaurants with their facts, in the model's
own template, and are of unequal length (%s). One optimizer step on all of them in one forward pass.

- **{CONSTANT}**, **{COMPACT}**: as above, with PEFT's LoRA of the same settings and a reward that costs nothing.
- **{UNREAD}**: the reward is the response's length, and the reference gives log-probabilities for the KL penalty and
  nothing else: what a step costs whose reward looks at nothing.
- **cagsr, ...** are presets. `attention` and `attention-values` read {LEARNT} heads of a file, as many as are learnt;
  `knockout` asks the observer again for each of a prompt's pieces. Some are measured at the shorter prompts only.
- **{WRITING}**: with `sampling.dtype: bfloat16`.
- **{ROUNDED}**: with `train.mixed_precision: bf16` as well.

**Floor** is the time that the products alone would take at the rate of two {SQUARE} x {SQUARE} matrices (%s): each
token once in sampling and scoring, and twice in training, because frozen weights need no gradient. A turn before the
first, in which memory is counted, warms up."""


@dataclass
class Measured:
    """Of one case: turns, seconds by part, peak bytes by way, and the prompts' tokens."""

    taken: dict[str, list[Taken]]
    parts: dict[str, list[dict[str, float]]]
    peaks: dict[str, int]
    lengths: list[int]


def measure_case(case: Case, shape: Shape, plan: Plan) -> Measured:
    with subject(shape, case, plan.quick) as (model, own), ExitStack() as stack:
        ways: dict[str, Callable[[], object]] = {}
        parts: dict[str, list[dict[str, float]]] = {}
        lengths: list[int] = []
        for name in case.ways:
            (step, used), clock = build(name, shape, model, own), Clock()
            lengths = [len(prompt.ids) for prompt in used]
            watch(step, clock)
            parts[name] = []
            ways[name] = noting(clock, parts[name], clock.timed("row", whole_step), step, used)
        adapter = config_of(shape, WAYS[UNREAD], model, own).model.lora
        assert adapter is not None, "the example trains an adapter"
        trl = TrlStep(
            shape,
            model,
            constants,
            prompts=chats(case)[: shape.prompts],
            adapter=LoraConfig(
                r=adapter.r, lora_alpha=adapter.alpha, target_modules=adapter.target_modules, lora_dropout=0.0
            ),
            output=own / "trl",
        )
        stack.callback(trl.end)

        def of_trl(compact: bool) -> None:
            trl.compact = compact
            trl()

        ways |= {CONSTANT: partial(of_trl, False), COMPACT: partial(of_trl, True)}
        peaks = {name: peak_bytes(work) for name, work in ways.items()}
        ways["matrix"] = partial(_products, torch.rand(SQUARE, SQUARE), torch.rand(SQUARE, SQUARE))
        return Measured(take_turns(ways, min(plan.rounds, FEW), warm=True), parts, peaks, lengths)


def errors(shape: Shape, model: Path, own: Path) -> list[list[str]]:
    """Rows: what rounding does to the log-probabilities of responses, and to the gradient, of a moved adapter."""
    step, prompts = build(ATTENTION, shape, model, own)
    policy, generator = step.policy, torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if ".lora_B." in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.01)
    rollout = WritingCopy(policy).sample(prompts, step.sampling)
    sampled = rollout.sampled_logprobs
    assert sampled is not None, "the copy tells them"
    signs = torch.randn(len(rollout.responses), 1, generator=generator)
    (exact, gradient), (rounded, other) = (_gradient(policy, rollout, signs, cast) for cast in (False, True))
    cosine = torch.nn.functional.cosine_similarity(gradient, other, dim=0)
    found = {WRITING: (sampled, ""), "bf16 passes": (rounded, f"{cosine:.4f}")}
    rows = []
    for name, (logprobs, agreement) in found.items():
        apart = (exact - logprobs)[rollout.response_mask]
        kl = (apart.exp() - 1 - apart).mean()
        rows.append([name, f"{apart.abs().mean():.3f}", f"{apart.abs().max():.2f}", f"{kl:.4f}", agreement])
    return rows


def _gradient(policy: Policy, rollout: Rollout, signs: Tensor, cast: bool) -> tuple[Tensor, Tensor]:
    """Log-probabilities, and the gradient of their sum weighted by ``signs``, in double precision."""
    policy.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=cast):
        logprobs = policy(rollout).logprobs
    (signs * logprobs).sum().backward()
    gradient = torch.cat(
        [weight.grad.flatten().double() for weight in policy.parameters() if weight.grad is not None]
    )
    return logprobs.detach(), gradient


def _products(left: Tensor, right: Tensor) -> None:
    for _ in range(PRODUCTS):
        torch.mm(left, right)


def measure(plan: Plan) -> Part:
    shape = QUICK if plan.quick else SHAPE
    found = {name: measure_case(case, shape, plan) for name, case in CASES.items()}
    with subject(shape, CASES["1.6:1"], plan.quick) as (model, own):
        rounding = errors(shape, model, own)
    rates = [PRODUCTS * 2 * SQUARE**3 / spread(cpu(each.taken["matrix"])).median for each in found.values()]
    where = "random weights" if plan.quick or cached_model() is None else "a rounded (Q4_1) copy in float32"
    tokens = "; ".join(
        f"{' and '.join(map(str, each.lengths))} tokens for S:T = {name}" for name, each in found.items()
    )
    about = ABOUT % (where, tokens, ", ".join(f"{rate / 1e9:.0f} GFLOP/s" for rate in rates))
    rows = [
        row
        for (name, each), rate in zip(found.items(), rates, strict=True)
        for row in _rows(name, each, floor_flops(shape, each.lengths) / rate)
    ]
    turns = {f"{name}: {way}": taken for name, each in found.items() for way, taken in each.taken.items()}
    columns = ["S:T", "Way", "Seconds", f"this / {UNREAD}", f"{CONSTANT} / this", f"{COMPACT} / this"]
    tables = [
        Table("", [*columns, "Times the floor", "Memory"], rows),
        Table("Percent of the step:", ["S:T", "Way", *PARTS], _share_rows(found)),
        Table(
            "What rounding changes, against float32 (log-probabilities in nats, KL in nats a token):",
            ["What", "mean difference", "largest", "KL", "cosine of the gradients"],
            rounding,
        ),
    ]
    return Part("A real model's step", about, tables, _bounds(found), turns)


def _rows(name: str, measured: Measured, floor: float) -> list[list[str]]:
    taken = measured.taken
    return [
        [
            name,
            way,
            spread(cpu(each)).text(),
            ratios(cpu(each), cpu(taken[UNREAD])).text(),
            *(ratios(cpu(taken[trl]), cpu(each)).text() for trl in (CONSTANT, COMPACT)),
            f"{spread(cpu(each)).median / floor:.1f}x",
            f"{measured.peaks[way] / MIB:.0f} MiB",
        ]
        for way, each in taken.items()
        if way in measured.peaks
    ]


def _share_rows(found: Mapping[str, Measured]) -> list[list[str]]:
    return [
        [name, way, *(spread(shares(kept, part)).text(1) for part in PARTS)]
        for name, each in found.items()
        for way, kept in each.parts.items()
    ]


def _bounds(found: Mapping[str, Measured]) -> list[Bound]:
    bounds = []
    for name, each in found.items():
        taken = each.taken
        faster = {trl: ratios(cpu(taken[trl]), cpu(taken[ATTENTION])) for trl in (CONSTANT, COMPACT)}
        bounds += [
            Bound(
                f"SmolLM2, {ATTENTION} against {trl}, S:T = {name}: times faster",
                "least",
                limit,
                faster[trl],
                "x",
            )
            for trl, limit in CASES[name].faster.items()
        ]
        over = ratios(cpu(taken[ATTENTION]), cpu(taken[UNREAD]))
        memory = each.peaks[ATTENTION] / each.peaks[CONSTANT]
        bounds += [
            Bound(f"SmolLM2, {ATTENTION} against {UNREAD}, S:T = {name}: time", "most", 1.05, over, "x"),
            Bound(
                f"SmolLM2, {ATTENTION} against {CONSTANT}, S:T = {name}: memory",
                "most",
                0.33,
                Spread(memory, memory, memory),
                "x",
            ),
        ]
    return bounds
