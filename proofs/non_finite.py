"""A number that is not finite stops the run before the optimizer step, by name, and no checkpoint holds it."""

import importlib
import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_file

import runs
from cagsr.training.loop import TrainingLoop
from cases import CASES, Workshop, differences, ending

TITLE = "a number that is not finite stops the run before the optimizer step"
PROMISE = 5
COUNT = 100

OF = [name for name, case in CASES.items() if case.command == "train"]
SIGNALS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
SIGNAL = "coverage"
KINDS = {
    "a signal's value": rf"signal '{SIGNAL}' is (nan|inf|-inf) in row \d+ \(prompt index \d+, candidate \d+\)",
    "a signal that raises": rf"signal '{SIGNAL}' failed on \d+ rows .*RuntimeError: on purpose",
    "a signal of a wrong length": rf"signal '{SIGNAL}' returned shape \[\d+\] for \d+ rows",
    "a signal of a wrong type": rf"signal '{SIGNAL}' returned list, expected a tensor",
    "a log-probability of the policy": r"the (loss|gradient norm) is (nan|inf)",
    "the loss of one token": r"the loss is (nan|inf|-inf) \(first in a response to the prompt of index \d+\)",
    "a gradient": r"the gradient norm is (nan|inf)",
    "the weights after a step": r"the weights .* are not finite any more; nothing was saved",
}


def prove(count: int, random: Random, advance: Callable[..., None]) -> list[str]:
    """The injections, out of ``count``, that did not stop the run, were not named, or got into a checkpoint."""
    workshop, failures, kinds = Workshop.open(), [], list(KINDS)
    for item in range(count):
        name, kind = random.choice(OF), kinds[item % len(kinds)]
        step, value = random.randint(1, CASES[name].steps), random.choice(list(SIGNALS.values()))
        problem = injected(workshop, name, workshop.fresh(item), kind, step, value)
        failures += [f"{name}, {kind} {value} in step {step}: {problem}"] if problem else []
        advance(**{kind: 1})
    return failures


def figures(sums: Counter[str]) -> str:
    return f"{len(sums)} kinds of injection"


def injected(workshop: Workshop, name: str, cwd: Path, kind: str, step: int, value: float) -> str:
    import re

    case = CASES[name]
    run = runs.start(case.arguments(False), cwd, before=partial(inject, kind, step, value))
    code = run.wait(300)
    if code != 3 or "Traceback" in run.err:
        return f"ended with {code}: {run.err.strip()[-300:]}"
    if not re.search(rf"error: step {step}: {KINDS[kind]}", run.err.replace("\n", " ")):
        return f"not named: {run.err.strip()}"
    for checkpoint in sorted((cwd / "run" / "checkpoints").glob("step-*")):
        if int(checkpoint.name.split("-")[1]) >= step:
            return f"{checkpoint.name} was saved"
        for weight, values in load_file(checkpoint / "model.safetensors").items():
            if not values.isfinite().all():
                return f"{checkpoint.name} holds {weight} that is not finite"
    again = runs.start(case.arguments(True), cwd)
    code = again.wait(300)
    return (
        differences(ending(cwd / "run"), workshop.expected(name))
        if code == 0
        else f"going on ended with {code}"
    )


def inject(kind: str, step: int, value: float) -> None:
    """Plant it: in that step, and in it alone, one number is ``value``."""
    from cagsr.models.policy import Policy
    from cagsr.models.predictions import Scored
    from cagsr.training.algorithms import Algorithm

    begin, now = TrainingLoop._begin, [0]

    def begun(trainer: TrainingLoop, number: int) -> object:
        now[0] = number + 1
        return begin(trainer, number)

    TrainingLoop._begin = begun  # type: ignore[method-assign, assignment]
    if kind.startswith("a signal"):
        _spoil_signal(kind, step, value, now)
    elif kind == "a log-probability of the policy":
        forward = Policy.forward

        def spoilt(policy: Policy, rollout: object) -> Scored:
            scored = forward(policy, rollout)  # type: ignore[arg-type]
            if now[0] == step:
                scored.logprobs.data[0, 0] = math.nan
            return scored

        Policy.forward = spoilt  # type: ignore[method-assign, assignment]
    elif kind == "the loss of one token":
        losses = Algorithm.token_losses

        def bad(algorithm: Algorithm, *given: object) -> object:
            loss, parts = losses(algorithm, *given)  # type: ignore[arg-type]
            if now[0] == step:
                loss = loss.clone()
                loss[-1, 0] = value
            return loss, parts

        Algorithm.token_losses = bad  # type: ignore[method-assign, assignment]
    else:
        _spoil_update(kind, step, value, now)


def _spoil_update(kind: str, step: int, value: float, now: list[int]) -> None:
    from cagsr.training.step import Step

    optimizer_step = Step._optimizer_step

    def stepped(self: Step, minibatch: object) -> object:
        weight = next(each for each in self.policy.parameters() if each.requires_grad)
        hook = None
        if now[0] == step and kind == "a gradient":
            hook = weight.register_hook(lambda gradient: torch.full_like(gradient, value))
        found = optimizer_step(self, minibatch)  # type: ignore[arg-type]
        if hook is not None:
            hook.remove()
        return found

    Step._optimizer_step = stepped  # type: ignore[method-assign, assignment]
    if kind == "the weights after a step":
        one = TrainingLoop._after

        def after(trainer: TrainingLoop, number: int, collapsed: object) -> None:
            if number == step:
                weight = next(each for each in trainer.step.policy.parameters() if each.requires_grad)
                weight.data.flatten()[0] = value
            one(trainer, number, collapsed)

        TrainingLoop._after = after  # type: ignore[method-assign]


def _spoil_signal(kind: str, step: int, value: float, now: list[int]) -> None:
    signals = importlib.import_module("cagsr.rewards.signals")
    original = signals.SIGNALS[SIGNAL]

    def spoilt(evidence: object, **options: object) -> object:
        values = original(evidence, **options)
        if now[0] != step:
            return values
        if kind == "a signal that raises":
            raise RuntimeError("on purpose")
        if kind == "a signal of a wrong length":
            return values[:-1]
        if kind == "a signal of a wrong type":
            return values.tolist()
        values = values.clone()
        values[len(values) // 2] = value
        return values

    spoilt.__signature__ = importlib.import_module("inspect").signature(original)  # type: ignore[attr-defined]
    signals.SIGNALS[SIGNAL] = spoilt
