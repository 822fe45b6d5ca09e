"""A stop is answered in time by a model that is slow: every pass takes a third of a second, so a rollout takes seconds
and an evaluation with knockouts half a minute.

The signal comes when the n-th pass begins: of the base's evaluation, of a rollout, of an update, of a later evaluation.
What the run comes to, once it goes on without being slowed down, is what it comes to when it is left alone.
"""

import math
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import runs
from cases import CASES, Case, Workshop, differences, ending

TITLE = "a stop of a slow model is answered within 10 s, and goes on"
PROMISE = 4
COUNT = 16

LIMIT_OF_ANSWER = 10.0
SLOW = 0.3
"""Seconds that every pass of the model takes longer."""

PASSES = 240
"""Passes of the model among which the one is chosen that a signal comes with; the whole run has more."""

STRUCK = "struck"
SIZE = (
    "data.evaluation_count=11",
    "train.evaluate_every=1",
    "train.steps=3",
    "algorithm.epochs=1",
    "reward.preset=robust",
)
SLOWED = {
    f"{name}, knockouts": Case("train", (*CASES[name].settings, *SIZE), steps=3)
    for name in ("GRPO, T5", "PPO, Llama", "GRPO, T5, LoRA")
}


def prove(count: int, random: Random, advance: Callable[..., None]) -> list[str]:
    """The stops, out of ``count``, that took too long, or whose run did not go on exactly."""
    CASES.update(SLOWED)
    workshop, failures = Workshop.open(), []
    for item in range(count):
        name, number = random.choice([*SLOWED]), random.choice((signal.SIGTERM, signal.SIGINT))
        # The base's evaluation comes first and is the longest part that nobody used to look at.
        at = random.randint(1, PASSES // 3 if item % 2 else PASSES)
        problem, seconds = answered(workshop, name, workshop.fresh(item), at, number)
        what = f"{name}, {signal.Signals(number).name} at pass {at}"
        failures += [f"{what}: {problem}"] if problem else []
        advance(**{f"{math.ceil(10 * seconds)}": 1})
    return failures


def figures(sums: Counter[str]) -> str:
    return f"longest answer {max(map(int, sums)) / 10:.1f} s, at {SLOW:g} s a pass"


def answered(workshop: Workshop, name: str, cwd: Path, at: int, number: int) -> tuple[str, float]:
    """What was wrong, if anything; and the seconds from the signal to the end of the process."""
    case, code_of = SLOWED[name], {signal.SIGTERM: 75, signal.SIGINT: 130}
    run = runs.start(case.arguments(False), cwd, before=partial(slowed, at, number))
    code = run.wait(500)
    ended = time.time()
    if not (cwd / STRUCK).exists():
        return f"the signal did not come; it ended with {code}: {run.err.strip()[-300:]}", 0.0
    seconds = ended - float((cwd / STRUCK).read_text())
    if code != code_of[signal.Signals(number)] or "everything is saved" not in run.err:
        return f"ended with {code}: {run.err.strip()[-300:]}", seconds
    if seconds > LIMIT_OF_ANSWER:
        return f"answered after {seconds:.1f} s", seconds
    again = runs.start(case.arguments(True), cwd)
    code = again.wait(300)
    if code:
        return f"going on ended with {code}: {again.err.strip()[-300:]}", seconds
    return differences(ending(cwd / "run"), workshop.expected(name)), seconds


def slowed(at: int, number: int) -> None:
    """Plant it: every pass of a whole model takes SLOW seconds longer, and with the n-th comes a signal."""
    from torch.nn.modules.module import register_module_forward_pre_hook
    from transformers import PreTrainedModel

    from cagsr.training.loop import TrainingLoop

    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the proof runs in the background
    passes = [0]

    def sleep(module: object, given: object) -> None:
        if not isinstance(module, PreTrainedModel) or not hasattr(module, "lm_head"):
            return
        passes[0] += 1
        if passes[0] == at:
            Path(STRUCK).write_text(str(time.time()))
            os.kill(os.getpid(), number)
        time.sleep(SLOW)

    run = TrainingLoop.run

    def slow_run(loop: TrainingLoop, resume: bool = False) -> object:
        register_module_forward_pre_hook(sleep)  # loading and its probes are as fast as ever
        return run(loop, resume)

    TrainingLoop.run = slow_run  # type: ignore[method-assign, assignment]
