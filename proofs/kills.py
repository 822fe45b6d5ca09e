"""A run that is killed again and again ends with the same bits as one that was left alone.

Half of the kills come at any moment of a run. The others come inside a save: there a run kills itself, before the
n-th file is opened, renamed or removed, or after a random part of the time that a save takes.
"""

import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import runs
from cases import CASES, Workshop, differences, ending

TITLE = "a killed run ends with the same bits"
PROMISE = 1
COUNT = 200

MOST_KILLS = 4
"""Of one run."""
INSIDE = 0.5
"""Share of the kills that are aimed inside a save."""
EVENTS = 40
"""A save opens, renames and removes about so many files."""
SAVE_SECONDS = 0.04
FILES = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")
MARK = "killed-inside"


def prove(count: int, random: Random, advance: Callable[..., None]) -> list[str]:
    """The runs, out of as many as ``count`` kills need, that do not go on or end with other bits."""
    workshop, failures, left, number = Workshop.open(), [], count, 0
    while left:
        number += 1
        name = random.choice(list(CASES))
        planned = min(left, random.randint(1, MOST_KILLS))
        struck, problem = killed(workshop, number, name, planned, random, advance)
        left -= struck
        failures += [f"{name}, run {number}, {struck} kills: {problem}"] if problem else []
    return failures


def figures(sums: Counter[str]) -> str:
    return f"{sums['inside']} inside a save, {sums['runs']} runs"


def killed(
    workshop: Workshop, number: int, name: str, planned: int, random: Random, advance: Callable[..., None]
) -> tuple[int, str]:
    """Kill one run up to ``planned`` times and let it end; the kills that struck, and what is wrong with the end."""
    case, expected, cwd = CASES[name], workshop.expected(name), workshop.fresh(number)
    struck = 0
    while True:
        arguments = case.arguments(resume=(cwd / "run" / "run.json").exists())
        if struck == planned:
            run = runs.start(arguments, cwd)
        elif random.random() < INSIDE:
            run = runs.start(
                arguments, cwd, before=partial(kill_inside_a_save, random.random(), random.random())
            )
        else:
            run = runs.start(arguments, cwd)
            time.sleep(random.uniform(0.0, 1.2) * workshop.seconds(name))
            run.kill()
        code = run.wait(300)
        if code == 0:
            problem = differences(ending(cwd / "run"), expected)
            return struck, problem
        if code != -signal.SIGKILL:
            return struck, f"ended with {code}: {run.err.strip()}"
        inside = (cwd / MARK).exists()
        (cwd / MARK).unlink(missing_ok=True)
        struck += 1
        advance(inside=int(inside), runs=int(struck == 1))


def kill_inside_a_save(moment: float, way: float) -> None:
    """Plant it: this process kills itself in one of its saves, at ``moment`` (0 to 1) of it."""
    from cagsr.runs.checkpoint import Checkpoints

    save, saving = Checkpoints.save, threading.Event()
    seen = [0]
    skipped = int(moment * 1000) % 3  # not always the first save of a process

    def kill() -> None:
        Path(MARK).touch()
        os.kill(os.getpid(), signal.SIGKILL)

    def late() -> None:
        time.sleep(moment * SAVE_SECONDS)
        if saving.is_set():
            kill()

    def watched(event: str, _: object) -> None:
        if saving.is_set() and event in FILES:
            seen[0] += 1
            if seen[0] > moment * EVENTS:
                saving.clear()
                kill()

    def killed_save(*given: object, **named: object) -> object:
        nonlocal skipped
        skipped -= 1
        if skipped < 0:
            saving.set()
            if way < 0.5:
                threading.Thread(target=late, daemon=True).start()
        try:
            return save(*given, **named)  # type: ignore[arg-type]
        finally:
            saving.clear()

    Checkpoints.save = killed_save  # type: ignore[method-assign, assignment]
    if way >= 0.5:
        sys.addaudithook(watched)
