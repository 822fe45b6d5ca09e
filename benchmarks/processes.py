"""The same step by one process and by two, under `accelerate launch` on the CPU.

Run by itself it is one of those processes: ``accelerate launch -m benchmarks.processes DIRECTORY FILE ROUNDS SHAPE``.
"""

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import torch

from benchmarks.protocol import Taken, ratios, spread, take_turns
from benchmarks.record import Part, Plan, Table
from benchmarks.subjects import Shape, saved, step_of, whole_step
from cagsr.io.quiet_libraries import silence_libraries

SHAPE = Shape(prompts=4, prompt_tokens=96, response_tokens=32)
QUICK = Shape(layers=2, hidden=32, vocabulary=300, prompts=4, prompt_tokens=16, response_tokens=8)
LAUNCHES = 2
SINGLE = "--cpu --num_processes 1"
# --cpu would run a single process, whatever --num_processes says; the script itself asks for the CPU.
DOUBLE = "--multi_gpu --num_processes 2 --main_process_port 0"
SAME = "--num_machines 1 --mixed_precision no --dynamo_backend no -m benchmarks.processes"
ABOUT = f"""{SHAPE}; {SHAPE.prompts} ragged prompts a step, K = {SHAPE.candidates}, S {SHAPE.prompt_tokens}, T
{SHAPE.response_tokens}, preset `coverage`: the same prompts in all, by one process of one thread, or two of one thread
each (gloo). Each is launched {LAUNCHES} times, in a random order; its steps are those after a first that warms up.
Wall seconds of the first process; the ratio is that of a step of one launch to the same step of another."""


def measure(plan: Plan) -> Part:
    shape = QUICK if plan.quick else SHAPE
    taken: dict[int, list[Taken]] = {1: [], 2: []}
    order = [1, 2] * LAUNCHES
    Random(0).shuffle(order)
    with saved(shape) as directory:
        for count in order:
            taken[count] += _launch(count, shape, directory, math.ceil(plan.rounds / LAUNCHES))
    walls = {count: [one.wall for one in each] for count, each in taken.items()}
    faster = ratios(walls[1], walls[2])
    rows = [
        [str(count), spread(walls[count]).text(), "" if count == 1 else f"{faster.text()}"] for count in walls
    ]
    columns = ["Processes", "A step: wall seconds", "Times faster than one"]
    turns = {f"{count} processes": each for count, each in taken.items()}
    return Part("One process and two", ABOUT, [Table("", columns, rows)], turns=turns)


def _launch(count: int, shape: Shape, directory: Path, rounds: int) -> list[Taken]:
    launcher = [
        "-m",
        "accelerate.commands.launch",
        *(SINGLE if count == 1 else DOUBLE).split(),
        *SAME.split(),
    ]
    with TemporaryDirectory() as name:
        file = Path(name) / "taken.json"
        given = [str(directory), str(file), str(rounds), json.dumps(asdict(shape))]
        paths = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
        subprocess.run(
            [sys.executable, *launcher, *given],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
            check=True,
        )
        found = json.loads(file.read_text(encoding="utf-8"))
    assert found["processes"] == count
    return [Taken(**one) for one in found["taken"]]


def main(directory: str, file: str, rounds: str, shape: str) -> None:
    silence_libraries()
    torch.set_num_threads(1)
    step, prompts = step_of(Shape(**json.loads(shape)), Path(directory))
    mine = step.world.share(prompts)
    taken = take_turns({"step": lambda: whole_step(step, mine)}, int(rounds))["step"]
    if step.accelerator.is_main_process:
        found = {"processes": step.world.size, "taken": [asdict(one) for one in taken]}
        Path(file).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
