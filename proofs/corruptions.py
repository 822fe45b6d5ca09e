"""A checkpoint that is not as it was written is left out, by name, and the one before it taken.

Every item damages the newest checkpoint of a real run in one way, some the two newest. What the continuation would
start from is asked in this process; every fiftieth item goes on for real and must end as if nothing had happened.
"""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

from accelerate import Accelerator

import runs
from cagsr.runs.checkpoint import Checkpoints
from cagsr.runs.directory import RunDirectory
from cases import CASES, Workshop, differences, ending

TITLE = "a corrupt checkpoint is detected"
PROMISE = 2
COUNT = 1000

WHOLE_RUN_EVERY = 50
OF = ("GRPO, T5", "PPO, Llama", "PPO, Llama, LoRA", "SFT, T5")


def prove(count: int, random: Random, advance: Callable[..., None]) -> list[str]:
    """The damage, out of ``count``, that was not noticed, or not said, or cost more than the checkpoint it was in."""
    workshop, failures, sources = Workshop.open(), [], dict[str, Path]()
    for item in range(count):
        name = random.choice(OF)
        cwd = workshop.fresh(1000 + item)
        if name not in sources:
            sources[name] = _half_way(workshop, OF.index(name), name)
        shutil.copytree(sources[name], cwd / "run")
        newest = _checkpoints(cwd / "run")
        spared = random.choice((1, 1, 1, 2))
        kinds = [damage(path, random) for path in newest[-spared:]]
        for_real = item % WHOLE_RUN_EVERY == 0
        problem = _answer(cwd / "run", newest[:-spared])
        if for_real and not problem:
            problem = _goes_on(workshop, name, cwd)
        failures += [f"{name}: {', '.join(kinds)}: {problem}"] if problem else []
        shutil.rmtree(cwd)
        advance(**{"whole runs": int(for_real)}, **Counter(kind.split(" of ")[0] for kind in kinds))
    return failures


def figures(sums: Counter[str]) -> str:
    return f"{sums['whole runs']} of them gone on with to the end"


def _half_way(workshop: Workshop, number: int, name: str) -> Path:
    """A run that was stopped by SIGTERM with three checkpoints."""
    cwd, case = workshop.fresh(number), CASES[name]
    run = runs.start(case.arguments(False, ("train.keep_checkpoints=3",)), cwd, before=stop_before_the_end)
    code = run.wait()
    assert code == 75, f"{code}: {run.err}"
    assert len(_checkpoints(cwd / "run")) == 3
    return cwd / "run"


def stop_before_the_end() -> None:
    """Plant it: the run is asked to stop once it has saved three times."""
    import os
    import signal

    save, left = Checkpoints.save, [3]

    def counted(*given: object, **named: object) -> object:
        saved = save(*given, **named)  # type: ignore[arg-type]
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return saved

    Checkpoints.save = counted  # type: ignore[method-assign, assignment]


def _checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").iterdir())


def damage(checkpoint: Path, random: Random) -> str:
    """Damage one file of it in one way that changes it; says which."""
    files = sorted(path for path in checkpoint.iterdir() if path.stat().st_size)
    path = random.choice(files)
    content = path.read_bytes()
    kind = random.choice(
        ("deletion", "truncation", "bit flip", "zeroed block", "garbage", "exchange", "extension")
    )
    if kind == "deletion":
        path.unlink()
    elif kind == "truncation":
        path.write_bytes(content[: random.randrange(len(content))])
    elif kind == "bit flip":
        changed, bit = bytearray(content), random.randrange(8 * len(content))
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
    elif kind == "zeroed block":
        changed, start = bytearray(content), random.randrange(len(content))
        end = min(len(content), start + 512)
        changed[start:end] = bytes(end - start)
        if changed == content:  # zeros already: ones then
            changed[start:end] = b"\xff" * (end - start)
        path.write_bytes(changed)
    elif kind == "garbage":
        path.write_bytes(random.randbytes(len(content)))
    elif kind == "extension":
        path.write_bytes(content + b"\n")
    else:
        other = random.choice([each for each in files if each != path])
        (path.read_bytes(), path.write_bytes(other.read_bytes()), other.write_bytes(content))
    return f"{kind} of {path.name}"


def _answer(run: Path, spared: list[Path]) -> str:
    said: list[str] = []
    identity = RunDirectory.resume(run)
    identity.close()
    found = Checkpoints(Accelerator(cpu=True), run / "checkpoints", identity.id, say=said.append).newest()
    if found != spared[-1]:
        return f"{found and found.name} is taken, not {spared[-1].name}"
    damaged = sorted(path.name for path in _checkpoints(run) if path not in spared)
    named = sorted(line.split(" is left out: ")[0].removeprefix("checkpoint ") for line in said)
    return "" if named == damaged else f"said of {named}, not of {damaged}"


def _goes_on(workshop: Workshop, name: str, cwd: Path) -> str:
    run = runs.start(CASES[name].arguments(resume=True), cwd)
    code = run.wait()
    if code:
        return f"going on ended with {code}: {run.err.strip()}"
    if "is left out: " not in run.out:
        return "going on did not say what it left out"
    return differences(ending(cwd / "run"), workshop.expected(name))
