"""What sealing a checkpoint costs beside saving it and training the step before it.

A run of the demo's encoder-decoder on its own task, a checkpoint after every step. Sealing is hashing every file,
forcing it to the disk, the manifest, and the rename; saving without it would be writing the files.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random

import runs
from cagsr.training.loop import TrainingLoop

TITLE = "sealing a checkpoint is cheap"
PROMISE = 16
COUNT = 20
ALONE = True

MOST = 0.05
"""Share of save and step together that sealing may take."""
SETTINGS = (
    "data.task=slots-paraphrase",
    "data.evaluation_count=2",
    "train.prompts_per_step=8",
    "train.save_every=1",
    "sampling.max_new_tokens=40",
    "run.directory=run",
)


def prove(count: int, random: Random, advance: Callable[..., None]) -> list[str]:
    """One failure if sealing took more than its share of ``count`` steps and their checkpoints."""
    run = runs.start(["train", *SETTINGS, f"train.steps={count}"], Path.cwd(), before=measure)
    code = run.wait(1800)
    if code:
        return [f"ended with {code}: {run.err.strip()[-300:]}"]
    seal, whole = 0.0, 0.0
    for line in Path("seconds.jsonl").read_text().splitlines()[:count]:
        seconds = json.loads(line)
        seal, whole = seal + seconds["seal"], whole + seconds["step"]
        advance(seal=seconds["seal"], whole=seconds["step"])
    return (
        []
        if seal <= MOST * whole
        else [f"sealing took {seal / whole:.1%} of save and step, more than {MOST:.0%}"]
    )


def figures(sums: Counter[str]) -> str:
    return f"{sums['seal'] / max(sums['whole'], 1e-9):.1%} of save and step"


def measure() -> None:
    """Plant it: after every step ``seconds.jsonl`` gets how long the step with its save took, and the seal in it."""
    from cagsr.runs import checkpoint

    spent: Counter[str] = Counter()

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        spent[name] += time.perf_counter() - started  # type: ignore[assignment]

    def watched(name: str, function: Callable[..., object], *given: object, **named: object) -> object:
        with timed(name):
            return function(*given, **named)

    one = TrainingLoop._one

    def step(*given: object) -> None:
        spent.clear()
        watched("step", one, *given)
        with Path("seconds.jsonl").open("a") as file:
            file.write(json.dumps(spent) + "\n")

    TrainingLoop._one = step  # type: ignore[method-assign, assignment]
    for name in ("seal", "sync_directory"):
        place = checkpoint.seal if name == "seal" else checkpoint
        setattr(place, name, partial(watched, "seal", getattr(place, name)))
