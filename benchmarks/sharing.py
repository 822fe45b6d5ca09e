"""What sharing a prompt among its candidates saves: encoding it once, and scoring its responses together."""

from collections.abc import Callable
from functools import partial

from benchmarks.protocol import Bound, Taken, cpu, peak_bytes, ratios, spread, take_turns
from benchmarks.record import Part, Plan, Table
from benchmarks.subjects import Shape, saved, step_of, whole_step
from benchmarks.variants import EncodesEachCandidate, ReadsEachCandidate
from cagsr.models.policy import Policy
from cagsr.types import Rollout

ENCODER = Shape(architecture="t5", layers=4, prompts=2, prompt_tokens=256, response_tokens=64)
CAUSAL = Shape(prompts=2, prompt_tokens=256, response_tokens=64)
SHARED, APART = "shared", "apart"
STEP, PASS, TRAINING = (
    "encoder-decoder: a whole step",
    "causal: scoring and capture",
    "causal: a training pass",
)
MIB = 2**20
ABOUT = f"""S = 256 and T = 64 (4:1), K = 8, 2 ragged prompts. **{SHARED}** is what the program does, **{APART}** the
same with every candidate's prompt computed for itself; both give the same numbers, which a test checks.

- **{STEP}** ({ENCODER}): the encoder runs once per prompt, or once per response, in sampling, scoring and training.
- **{PASS}** ({CAUSAL}): one `observe` of given responses, all layers read; and **{TRAINING}**: their
  log-probabilities with gradients, and the backward pass."""


def quick(shape: Shape) -> Shape:
    return Shape(shape.architecture, 2, 32, 4, 300, 2, 8, 32, 8)


def training_pass(policy: Policy, rollout: Rollout) -> None:
    policy(rollout).logprobs.sum().backward()
    policy.zero_grad()


def measure(plan: Plan) -> Part:
    rows: list[list[str]] = []
    turns: dict[str, list[Taken]] = {}
    bounds: list[Bound] = []
    works = {
        **_steps(quick(ENCODER) if plan.quick else ENCODER),
        **_passes(quick(CAUSAL) if plan.quick else CAUSAL),
    }
    for title, pair in works.items():
        taken = take_turns(pair, plan.rounds)
        peaks = {name: f"{peak_bytes(work) / MIB:.1f} MiB" for name, work in pair.items()}
        turns |= {f"{title}: {name}": each for name, each in taken.items()}
        share = ratios(cpu(taken[SHARED]), cpu(taken[APART]))
        seconds = [spread(cpu(taken[name])).text(3) for name in (SHARED, APART)]
        rows.append([title, *seconds, share.text(3), peaks[SHARED], peaks[APART]])
        if title == STEP:
            faster = ratios(cpu(taken[APART]), cpu(taken[SHARED]))
            what = "encoder-decoder step against K-fold encoding, S:T = 4:1, K = 8: times faster"
            bounds.append(Bound(what, "least", 2.0, faster, "x"))
        if title == PASS:
            what = "shared-prompt scoring and capture, time of plain scoring and capture, S:T = 4:1, K = 8"
            bounds.append(Bound(what, "most", 0.45, share, "x"))
    columns = [
        "What",
        "Shared: seconds",
        "Apart: seconds",
        "Shared / apart",
        "Shared: memory",
        "Apart: memory",
    ]
    return Part("Sharing a prompt among its candidates", ABOUT, [Table("", columns, rows)], bounds, turns)


def _steps(shape: Shape) -> dict[str, dict[str, Callable[[], object]]]:
    with saved(shape) as directory:
        shared = partial(whole_step, *step_of(shape, directory))
        apart = partial(whole_step, *step_of(shape, directory, as_policy=EncodesEachCandidate))
    return {STEP: {SHARED: shared, APART: apart}}


def _passes(shape: Shape) -> dict[str, dict[str, Callable[[], object]]]:
    with saved(shape) as directory:
        step, prompts = step_of(shape, directory)
        plain = step_of(shape, directory, as_policy=ReadsEachCandidate)[0].policy
    rollout = step.policy.sample(prompts, step.sampling)
    return {
        PASS: {SHARED: partial(step.policy.observe, rollout), APART: partial(plain.observe, rollout)},
        TRAINING: {
            SHARED: partial(training_pass, step.policy, rollout),
            APART: partial(training_pass, plain, rollout),
        },
    }
