"""Where the time of a step goes: sampling, scoring, reward, update."""

import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from benchmarks.protocol import Bound, Taken, cpu, spread, take_turns
from benchmarks.record import Part, Plan, Table
from benchmarks.subjects import Shape, saved, step_of, whole_step
from cagsr.training.step import Step

__all__ = ["PARTS", "Clock", "measure", "noting", "shares", "watch"]

SHAPES = {
    "causal": Shape(prompts=2, prompt_tokens=128, response_tokens=32),
    "encoder-decoder": Shape(architecture="t5", layers=3, prompts=2, prompt_tokens=128, response_tokens=32),
}
QUICK = Shape(layers=2, hidden=32, vocabulary=300, prompts=2, prompt_tokens=16, response_tokens=8)
REWARD = "reward"
PARTS = {
    "sampling": "`policy.sample`",
    "reference": "the reference's pass, with the attention read in it",
    "asked again": "the observer's further passes, for signals that take pieces of the prompt away",
    REWARD: "salience, signals, standardising, weighing",
    "rest of collect": "the policy's own log-probabilities, advantages, what is kept to be looked at",
    "update": "forward and backward pass, clipping, optimizer",
    "row": "the step's row of metrics",
}
ABOUT = f"""Every step is taken whole; what is called in it is timed, each part without the parts called from it.

{chr(10).join(f"- **{name}**: {what}." for name, what in PARTS.items())}

{SHAPES["causal"]}, and {SHAPES["encoder-decoder"]}; 2 ragged prompts, K = 8, S = 128, T = 32."""


@dataclass
class Clock:
    """Seconds of this process by part; a part that is called within another is not counted twice."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _inner: list[float] = field(default_factory=list)

    def timed(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **named: Any) -> Any:
            started = time.process_time()
            self._inner.append(0.0)
            try:
                return work(*given, **named)
            finally:
                elapsed = time.process_time() - started
                self.seconds[part] += elapsed - self._inner.pop()
                if self._inner:
                    self._inner[-1] += elapsed

        return run


def watch(step: Step, clock: Clock) -> None:
    """Have the clock time what ``step`` calls, by the names that anybody may call."""
    calls = [
        (step.sampler or step.policy, "sample", "sampling"),
        (step.observer, "observe", "reference"),
        (step.observer, "logprobs", "asked again"),
        (step.reward, "measure", REWARD),
        (step.reward, "combine", REWARD),
        (step.reward, "weighted", REWARD),
        (step, "salience", REWARD),
        (step, "collect", "rest of collect"),
        (step, "update", "update"),
    ]
    for owner, name, part in calls:
        setattr(owner, name, clock.timed(part, getattr(owner, name)))


def measure(plan: Plan) -> Part:
    clocks: dict[str, Clock] = {}
    kept: dict[str, list[dict[str, float]]] = {}
    ways: dict[str, Callable[[], object]] = {}
    with ExitStack() as stack:
        for title, shape in {"causal": QUICK}.items() if plan.quick else SHAPES.items():
            directory = stack.enter_context(saved(shape))
            for preset in ("coverage", "robust"):
                name, clock = f"{title}, {preset}", Clock()
                step, prompts = step_of(shape, directory, preset)
                watch(step, clock)
                clocks[name], kept[name] = clock, []
                ways[name] = noting(clock, kept[name], clock.timed("row", whole_step), step, prompts)
        taken = take_turns(ways, plan.rounds)
    tables = [_table(kept, taken)]
    return Part("Where the time of a step goes", ABOUT, tables, _bounds(kept), taken)


def noting(
    clock: Clock, kept: list[dict[str, float]], work: Callable[..., Any], *given: Any
) -> Callable[[], object]:
    """``work`` as a way, whose seconds by part are appended to ``kept`` at each turn."""

    def turn() -> None:
        clock.seconds = defaultdict(float)
        work(*given)
        kept.append(clock.seconds)

    return turn


def shares(kept: list[dict[str, float]], part: str) -> list[float]:
    """Percent of each step; the first step of all warmed up."""
    return [100 * seconds[part] / sum(seconds.values()) for seconds in kept[1:]]


def _table(kept: dict[str, list[dict[str, float]]], taken: dict[str, list[Taken]]) -> Table:
    rows = [
        [name, spread(cpu(taken[name])).text(), *(spread(shares(each, part)).text(1) for part in PARTS)]
        for name, each in kept.items()
    ]
    return Table("Percent of the step:", ["Step", "Seconds", *PARTS], rows)


def _bounds(kept: dict[str, list[dict[str, float]]]) -> list[Bound]:
    return [
        Bound(
            f"signals and standardising, of a step ({name})", "most", 1.0, spread(shares(each, REWARD)), " %"
        )
        for name, each in kept.items()
    ]
