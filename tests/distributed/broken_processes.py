"""What two processes do when only one of them is in trouble."""

from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

import tiny
from cagsr.config.schema import AlgorithmSettings, Train
from cagsr.errors import CagsrError
from cagsr.io.shutdown import Stops
from cagsr.runs.checkpoint import Checkpoints
from cagsr.training.algorithms import Algorithm
from cagsr.training.loop import TrainingLoop


class AskedOnce(Stops):
    """One process alone is asked to stop, at the fourth place where it can: inside the first step."""

    def __init__(self, rank: int):
        super().__init__()
        self.looks, self.mine = 0, rank == 1

    def requested(self) -> int:
        self.looks += 1
        return 15 if self.mine and self.looks == 4 else 0


def make(accelerator: Accelerator, directory: Path, stops: Stops | None = None) -> TrainingLoop:
    policy = tiny.policy("llama", extra_eos=20)
    step = tiny.make_step(
        policy,
        accelerator=accelerator,
        algorithm=Algorithm(AlgorithmSettings(name="grpo", epochs=2, minibatches=2)),
        groups_per_pass=1,
        learning_rate=3e-3,
    )
    return TrainingLoop(
        step=step,
        prompts=tiny.prompts(policy, (3, 7, 2, 5, 4, 6)),
        schedule=Train(steps=2, prompts_per_step=4, seed=3),
        watch=tiny.watch(),
        directory=directory,
        checkpoints=Checkpoints(accelerator, directory / "checkpoints", "run0"),
        stops=stops or Stops(),
    )


def outcome(act: Any) -> str:
    try:
        act()
    except CagsrError as error:
        return f"{type(error).__name__}: {error}"
    return "done"


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []


def main(accelerator: Accelerator, directory: Path) -> dict[str, Any]:
    unbroken = make(accelerator, directory / "whole")
    unbroken.run()
    found: dict[str, Any] = {"weights": tiny.weights_of(unbroken.step.policy)}

    # A disk of one process is full.
    saving = unbroken.checkpoints
    if accelerator.process_index == 1:
        object.__setattr__(saving, "_save_state", full)
    before = names(saving.root)
    found["full"] = gather_object([outcome(lambda: saving.save(9, {}))])
    found["untouched"] = names(saving.root) == before

    accelerator.free_memory()
    stopped = make(accelerator, directory / "broken", AskedOnce(accelerator.process_index))
    found["stopped"] = gather_object([outcome(stopped.run)])
    found["kept"] = names(directory / "broken" / "checkpoints")
    found["held"] = names(directory / "broken" / "checkpoints" / found["kept"][0]) if found["kept"] else []

    accelerator.free_memory()
    resumed = make(accelerator, directory / "broken")
    resumed.run(resume=True)
    found["again"] = tiny.weights_of(resumed.step.policy)
    return found
