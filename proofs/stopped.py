"""SIGTERM and Ctrl-C at any moment: saved, the right exit code, and a continuation to the same bits.

A signal comes when the run enters a phase for the n-th time, or a random part of a second later: while it loads,
samples, updates, evaluates, saves, or writes its model.
"""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import runs
from cagsr.runs.directory import RunDirectory
from cagsr.training.loop import TrainingLoop
from cases import CASES, Workshop, differences, ending

TITLE = "a stop by a signal is saved and goes on"
PROMISE = 4
COUNT = 50

PHASES = {
    "load": ("cagsr.training.assembly", "build_policy"),
    "rollout": ("cagsr.models.policy.Policy", "sample"),
    "update": ("cagsr.training.step.Step", "_optimizer_step"),
    "evaluation": ("cagsr.training.loop.TrainingLoop", "_evaluate"),
    "save": ("cagsr.runs.checkpoint.Checkpoints", "save"),
    "model": ("cagsr.training.loop.TrainingLoop", "_save_model"),
}
STRUCK = "struck"
"""A file with the number of the step in which the signal came."""
OF = [name for name, case in CASES.items() if case.command == "train"]


def prove(count: int, random: Random, advance: Callable[..., None]) -> list[str]:
    """The stops, out of ``count``, that were not saved, not said, or not gone on from exactly."""
    workshop, failures = Workshop.open(), []
    phases = list(PHASES)
    for item in range(count):
        name, phase = random.choice(OF), phases[item % len(phases)]
        number = random.choice((signal.SIGTERM, signal.SIGINT))
        time_of, delay = random.randint(1, 4), random.choice((0.0, random.uniform(0.0, 0.03)))
        cwd = workshop.fresh(item)
        plan = partial(signal_in, phase, time_of, delay, number)
        problem, struck = stopped(workshop, name, cwd, plan, number)
        what = f"{name}, {signal.Signals(number).name} in {phase} {time_of}"
        failures += [f"{what}: {problem}"] if problem else []
        advance(**{phase: int(struck)})
    return failures


def figures(sums: Counter[str]) -> str:
    return ", ".join(f"{count} {phase}" for phase, count in sums.items() if count)


def stopped(
    workshop: Workshop, name: str, cwd: Path, plan: Callable[[], object], number: int
) -> tuple[str, bool]:
    case, code_of = CASES[name], {signal.SIGTERM: 75, signal.SIGINT: 130}
    run = runs.start(case.arguments(False), cwd, before=plan)
    code = run.wait(300)
    begun = int((cwd / STRUCK).read_text()) if (cwd / STRUCK).exists() else case.steps
    done = _steps(cwd / "run")
    if begun < done:
        return f"not stopped: the signal came in step {begun}, and {done} steps were done", True
    if code == 0:  # too late to stop
        return differences(ending(cwd / "run"), workshop.expected(name)), False
    if code != code_of[signal.Signals(number)] or "Traceback" in run.err or "stopped by" not in run.err:
        return f"ended with {code}: {run.err.strip()[-300:]}", True
    resume = (cwd / "run" / "run.json").exists()
    if "everything is saved" in run.err:
        problem = _not_saved(cwd / "run")
        if problem:
            return problem, True
    again = runs.start(case.arguments(resume), cwd)
    code = again.wait(300)
    if code:
        return f"going on ended with {code}: {again.err.strip()[-300:]}", True
    return differences(ending(cwd / "run"), workshop.expected(name)), True


def _not_saved(run: Path) -> str:
    """Every step that was recorded is in the newest checkpoint."""
    newest = sorted(path.name for path in (run / "checkpoints").glob("step-*"))[-1:]
    done = _steps(run)
    saved = int(newest[0].split("-")[1]) if newest else -1
    return "" if saved == done else f"{done} steps were done and {saved} are saved"


def _steps(run: Path) -> int:
    return max((row["step"] for row in RunDirectory(run, "").rows() if "loss" in row), default=0)


def signal_in(phase: str, time_of: int, delay: float, number: int) -> None:
    """Plant it: the process gets a signal ``delay`` seconds after it enters the phase for the n-th time."""
    import importlib

    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the proof runs in the background
    path, attribute = PHASES[phase]
    module, _, owner = path.rpartition(".")
    place = (
        importlib.import_module(path) if phase == "load" else getattr(importlib.import_module(module), owner)
    )
    original, entered, begun = getattr(place, attribute), [0], [0]

    def strike() -> None:
        Path(STRUCK).write_text(str(begun[0]))
        os.kill(os.getpid(), number)

    def late() -> None:
        time.sleep(delay)
        strike()

    def entering(*given: object, **named: object) -> object:
        entered[0] += 1
        if entered[0] == (1 if phase == "load" else time_of):
            if delay:
                threading.Thread(target=late, daemon=True).start()
            else:
                strike()
        return original(*given, **named)

    setattr(place, attribute, entering)
    begin = TrainingLoop._begin

    def beginning(trainer: TrainingLoop, step: int) -> object:
        begun[0] = step + 1
        return begin(trainer, step)

    TrainingLoop._begin = beginning  # type: ignore[method-assign, assignment]
