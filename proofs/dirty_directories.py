"""Nothing that the program did not write is deleted or overwritten, and of two starts in one place one wins.

A directory is filled with somebody's files, under names of their own and under the names that a run uses. It is
given to every command that writes, or a stopped run is gone on with among them. Afterwards each of those files must
be there, byte for byte, where it was or (a checkpoint's name that a run needed) beside it.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import runs
from cases import CASES, Workshop, differences, ending

TITLE = "nothing is deleted or overwritten that it did not write"
PROMISE = 6
COUNT = 500

NAMES = (
    "thesis.tex", ".hidden", "data", "notes/README.md", "model/README.md", "model/model.safetensors", "best/x.bin",
    "checkpoints/step-000001/model.safetensors", "checkpoints/step-000002/MANIFEST.json", "checkpoints/step-000005",
    "checkpoints/best.pt", "config.yaml", "metrics.jsonl", "candidates.jsonl", "summary.json", "base/model/config.json",
    "cagsr/seed-0/run.json", "no-rl/seed-0/result.json", "table.csv", "preset.yaml", "scores.jsonl", "responses.jsonl",
    "a b\n.txt", "ünï", "controls/paper/run.json", "reward-models/x/training.json",
)  # fmt: skip
# In a run that goes on: beside what the run wrote, never under a name that it has taken.
AMONG = (
    "thesis.tex", ".hidden", "notes/README.md", "model/notes.txt", "best/notes.txt", "checkpoints/best.pt",
    "checkpoints/step-000001/notes.txt", "checkpoints/step-000002/notes.txt", "checkpoints/step-000009/weights.bin",
    "checkpoints/other/model.safetensors", "checkpoints/step-000004/mine.bin", "logs/events",
)  # fmt: skip
OF = ("GRPO, T5", "PPO, Llama", "SFT, T5")
COMMANDS = {
    "train": lambda: CASES["GRPO, T5"].arguments(False),
    "train --resume": lambda: CASES["GRPO, T5"].arguments(True),
    "sft": lambda: CASES["SFT, T5"].arguments(False),
    "sft --resume": lambda: CASES["SFT, T5"].arguments(True),
    "compare": lambda: ["compare", *_small_comparison()],
    "compare --resume": lambda: ["compare", *_small_comparison(), "--resume"],
    "demo": lambda: ["demo", "--directory", "run", "data.count=4", "train.steps=1"],
    "calibrate": lambda: [
        "calibrate", "model.name=t5", "data.task=slots", "data.count=4", "--prompts", "2", "--output",
        "run/preset.yaml",
    ],
    "score": lambda: ["score", "rows.jsonl", "model.name=t5", "--output", "run/scores.jsonl"],
}  # fmt: skip


def prove(count: int, random: Random, advance: Callable[..., None]) -> list[str]:
    """The directories, out of ``count``, in which something of somebody's is not as it was."""
    workshop, failures, halves = Workshop.open(), [], dict[str, Path]()
    for item in range(count):
        cwd = workshop.fresh(item)
        kind = random.choice(("dirty", "dirty", "dirty", "among", "two starts"))
        if kind == "dirty":
            what, problem = _dirty(cwd, random)
        elif kind == "among":
            what, problem = _among(workshop, cwd, halves, random)
        else:
            what, problem = "two starts", _two_starts(workshop, cwd)
        failures += [f"{what}: {problem}"] if problem else []
        shutil.rmtree(cwd)
        advance(**{kind: 1})
    return failures


def figures(sums: Counter[str]) -> str:
    return (
        f"{sums['dirty']} used places, {sums['among']} runs gone on with, {sums['two starts']} double starts"
    )


def _small_comparison() -> list[str]:
    settings = [each for each in CASES["GRPO, T5"].settings if not each.startswith("run.directory")]
    return [*settings, "compare.directory=run", "compare.seeds=[0]", "compare.systems=[no-rl]"]


def _dirty(cwd: Path, random: Random) -> tuple[str, str]:
    """Any command is given a place that is somebody's."""
    command = random.choice(list(COMMANDS))
    names = random.sample(NAMES, random.randint(1, 5))
    if command in ("calibrate", "score"):  # they write one file: it is there already
        names = [*names, {"calibrate": "preset.yaml", "score": "scores.jsonl"}[command]]
    _plant(cwd / "run", names, random)
    before = _tree(cwd / "run")
    run = runs.start(COMMANDS[command](), cwd)
    code = run.wait(300)
    if code != 2 or "Traceback" in run.err:
        return f"{command} on {names}", f"ended with {code}: {run.err.strip()[-300:]}"
    return f"{command} on {names}", "" if _tree(cwd / "run") == before else "the place was changed"


def _among(workshop: Workshop, cwd: Path, halves: dict[str, Path], random: Random) -> tuple[str, str]:
    """A stopped run goes on among files of somebody's."""
    name = random.choice(OF)
    if name not in halves:
        halves[name] = _half_way(workshop, -10 - OF.index(name), name)
    shutil.copytree(halves[name], cwd / "run")
    taken = {str(path.relative_to(cwd / "run")) for path in (cwd / "run").rglob("*")}
    names = [each for each in random.sample(AMONG, random.randint(1, 5)) if each not in taken]
    contents = Counter(path.read_bytes() for path in _plant(cwd / "run", names, random))
    run = runs.start(CASES[name].arguments(True), cwd)
    code = run.wait(300)
    if code:
        return f"{name} among {names}", f"ended with {code}: {run.err.strip()[-300:]}"
    kept = Counter(path.read_bytes() for path in (cwd / "run").rglob("*") if path.is_file())
    lost = contents - kept
    if lost:
        return f"{name} among {names}", f"{lost.total()} files are gone"
    return f"{name} among {names}", differences(_without(ending(cwd / "run"), names), workshop.expected(name))


def _without(found: dict[str, object], names: list[str]) -> dict[str, object]:
    return {key: value for key, value in found.items() if key not in names}


def _two_starts(workshop: Workshop, cwd: Path) -> str:
    """Both at once: one ends as it does alone, the other says whose place it is."""
    arguments = CASES["GRPO, T5"].arguments(False)
    both = [runs.start(arguments, cwd) for _ in range(2)]
    codes = sorted(run.wait(300) for run in both)
    if codes != [0, 2]:
        return f"ended with {codes}: {[run.err.strip()[-200:] for run in both]}"
    loser = next(run for run in both if run.err)
    if "belongs to run" not in loser.err and "is being written by process" not in loser.err:
        return f"the other said: {loser.err.strip()}"
    return differences(ending(cwd / "run"), workshop.expected("GRPO, T5"))


def _half_way(workshop: Workshop, number: int, name: str) -> Path:
    from corruptions import stop_before_the_end

    cwd = workshop.fresh(number)
    run = runs.start(CASES[name].arguments(False), cwd, before=stop_before_the_end)
    assert run.wait() == 75, run.err
    return cwd / "run"


def _plant(run: Path, names: list[str], random: Random) -> list[Path]:
    """Files, and now and then a directory with one, under these names; the files."""
    planted = []
    for name in names:
        path = run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if random.random() < 0.1 and not path.suffix:
            path.mkdir(exist_ok=True)
            path = path / "inside"
        if not path.is_dir():
            path.write_bytes(json.dumps(random.random()).encode() + random.randbytes(random.randrange(100)))
            planted.append(path)
    return planted


def _tree(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}
