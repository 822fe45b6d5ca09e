"""Training of a LoRA adapter under FSDP2, a block gathered at a time, by however many processes there are."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import load_file
from sharded_processes import Kept, held
from torch.distributed.fsdp import FSDPModule

import tiny
from cagsr.config.schema import AlgorithmSettings, Train
from cagsr.evaluation.evaluator import Evaluator, measure_signals
from cagsr.models.load_policy import load_policy
from cagsr.runs.checkpoint import Checkpoints
from cagsr.training.algorithms import Algorithm
from cagsr.training.loop import TrainingLoop
from sharded import fsdp2

LAYERS, RANK = 2, 5  # rows of an adapter do not divide evenly among the processes


def save_base(directory: Path) -> None:
    """The model that the adapter stands on, as a directory: only then is an adapter saved by itself."""
    policy = tiny.policy("llama", extra_eos=20, shape={"layers": LAYERS})
    policy.model.save_pretrained(directory)
    policy.tokenizer.save_pretrained(directory)


class Gathered:
    """The most blocks of a model that were gathered when one of them ran."""

    def __init__(self, policy: torch.nn.Module):
        self.most = 0
        self.blocks = [part for part in policy.modules() if isinstance(part, FSDPModule)][1:]
        for block in self.blocks:
            block.self_attn.register_forward_hook(self.look)

    def look(self, *_: object) -> None:
        self.most = max(self.most, sum(whole(block) for block in self.blocks))


def whole(block: FSDPModule) -> bool:
    return not hasattr(next(block.parameters()), "device_mesh")


def make(
    accelerator: Accelerator, base: Path, directory: Path, steps: int, start: Path | None = None
) -> tuple[TrainingLoop, Kept]:
    torch.manual_seed(7)  # of the adapter
    new = {"r": RANK, "alpha": 11, "target_modules": ["q_proj", "down_proj"]}
    policy = load_policy(base, lora=new if start is None else {"path": str(start)})
    policy.model.activation_checkpointing_enable({"use_reentrant": False})
    step = tiny.make_step(
        policy,
        accelerator=accelerator,
        algorithm=Algorithm(AlgorithmSettings(name="grpo", epochs=2)),
        groups_per_pass=1,
        learning_rate=3e-2,
        optimizer=partial(torch.optim.AdamW, eps=1e-4),
    )
    # Three prompts in passes of one: some processes take more passes than others, and one of four none at all.
    evaluated = tiny.prompts(policy, (4, 2, 6), seed=1)
    measured = measure_signals(step.reward, step.observer, step.salience)
    kept = Kept()
    loop = TrainingLoop(
        step=step,
        prompts=tiny.prompts(policy, (3, 7, 2, 5, 4, 6)),
        schedule=Train(
            steps=steps,
            prompts_per_step=8,
            save_every=1,
            seed=3,
            gather_for_rollouts=False,
        ),
        watch=tiny.watch(),
        directory=directory,
        checkpoints=Checkpoints(accelerator, directory / "checkpoints", "run0"),
        evaluate=Evaluator(policy, evaluated, step.sampling, step.reward, measured, None, step.world, 1),
        observers=[kept],
    )
    return loop, kept


def run(
    accelerator: Accelerator,
    base: Path,
    directory: Path,
    steps: int = 2,
    resume: bool = False,
    start: Path | None = None,
) -> dict[str, Any]:
    """The rows of a run, its last responses, what it saved, and how many blocks were whole at a time.

    ``start`` is an adapter to go on from.
    """
    loop, kept = make(accelerator, base, directory, steps, start)
    watched = Gathered(loop.step.policy)
    loop.run(resume=resume)
    return {
        "rows": kept.rows,
        "responses": gather_object(list(kept.responses)),
        "model": load_file(directory / "model" / "adapter_model.safetensors"),
        "held": held(directory / f"checkpoints/step-{steps:06d}"),
        "files": sorted(path.name for path in (directory / "model").iterdir()),
        "gathered": watched.most,
    }


def sharded(accelerator: Accelerator, *given: Any, **settings: Any) -> dict[str, Any]:
    return run(fsdp2(accelerator, reshard_after_forward=True), *given, **settings)


def going_on(accelerator: Accelerator, base: Path, start: Path, directory: Path) -> dict[str, Any]:
    """A run in shards that goes on from an adapter."""
    return sharded(accelerator, base, directory, start=start)


def resumed(accelerator: Accelerator, base: Path, before: Path, directory: Path) -> dict[str, Any]:
    """Go on from a copy of the run ``before``, which another number of processes left after its first step."""
    if accelerator.is_main_process:
        shutil.copytree(before, directory)
    accelerator.wait_for_everyone()
    return sharded(accelerator, base, directory, resume=True)
