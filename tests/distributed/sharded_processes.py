"""Training under FSDP2 by however many processes there are: whole, stopped and gone on, with a full disk."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from broken_processes import AskedOnce, full, names, outcome
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint import filesystem

import tiny
from cagsr.attention.sharing import Sharing
from cagsr.config.schema import AlgorithmSettings, Term, Train
from cagsr.distributed import fsdp as sharding
from cagsr.distributed.shard_files import has_shards, weights_in
from cagsr.evaluation.evaluator import Evaluator, measure_signals
from cagsr.io.shutdown import Stops
from cagsr.rewards.reward import Reward
from cagsr.runs.checkpoint import Checkpoints
from cagsr.training.algorithms import Algorithm
from cagsr.training.loop import TrainingLoop
from sharded import fsdp2

# Blocks keep their weights after a pass and are gathered at once for a rollout, or both one at a time; each once.
RUNS = {
    "grpo": (
        "llama",
        Algorithm(AlgorithmSettings(name="grpo", loss_normalisation="sequence", epochs=2)),
        False,
    ),
    "ppo": ("t5", Algorithm(AlgorithmSettings(name="ppo", kl_placement="reward", epochs=2)), True),
}
LAST = "checkpoints/step-000002"


class Kept:
    """The numbers of every step and evaluation, but for how long they took."""

    def __init__(self):
        self.rows: list[dict[str, float]] = []

    def on_start(self, step: int | None) -> None:
        pass

    def on_step(self, step: int, row: dict[str, float], collected: Any) -> None:
        timed = ("seconds", "tokens_per_second", "memory")
        self.rows.append({name: value for name, value in row.items() if name not in timed})
        self.responses = collected.rollout.responses

    def on_evaluation(self, step: int, row: dict[str, float]) -> None:
        self.rows.append(dict(row))

    def on_warning(self, step: int, message: str) -> None:
        pass


def make(
    name: str, accelerator: Accelerator, directory: Path, stops: Stops | None = None
) -> tuple[TrainingLoop, Kept]:
    architecture, algorithm, again = RUNS[name]
    policy = tiny.policy(architecture, critic=name == "ppo", extra_eos=20)
    if name == "ppo":
        policy.sharing = Sharing("writes by transformers' own loop, for this test")
    if again:
        policy.model.activation_checkpointing_enable({"use_reentrant": False})
    # Standardised over the batch, which is that of all processes.
    reward = Reward([Term("low_tokens", standardise="batch")], extra={"low_tokens": tiny.low_tokens})
    live = {"observer": policy} if name == "grpo" else {}
    # Adam divides by the size of a gradient, rounding included; its epsilon keeps it from showing.
    step = tiny.make_step(
        policy,
        accelerator=accelerator,
        algorithm=algorithm,
        reward=reward,
        groups_per_pass=1,
        learning_rate=3e-3,
        max_grad_norm=0.1,
        optimizer=partial(torch.optim.AdamW, eps=1e-4),
        **live,
    )
    # Three prompts in passes of one: the first process of two takes more passes than the second.
    evaluated = tiny.prompts(policy, (4, 2, 6), seed=1)
    measured = measure_signals(reward, step.observer, step.salience)
    how = (step.sampling, reward, measured, None, step.world, 1)
    kept = Kept()
    trainer = TrainingLoop(
        step=step,
        prompts=tiny.prompts(policy, (3, 7, 2, 5, 4, 6)),
        schedule=Train(steps=2, prompts_per_step=4, evaluate_every=1, seed=3, gather_for_rollouts=not again),
        watch=tiny.watch(shuffled_every=1),
        directory=directory,
        checkpoints=Checkpoints(accelerator, directory / "checkpoints", "run0"),
        stops=stops or Stops(),
        evaluate=Evaluator(policy, evaluated, *how),
        observers=[kept],
    )
    return trainer, kept


def held(checkpoint: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint, in shards or whole."""
    return weights_in(checkpoint) if has_shards(checkpoint) else load_file(checkpoint / "model.safetensors")


def run(name: str, accelerator: Accelerator, directory: Path) -> dict[str, Any]:
    """The rows of an unbroken run, and the weights it saved."""
    trainer, kept = make(name, accelerator, directory)
    trainer.run()
    responses = gather_object(list(kept.responses))
    weights = load_file(directory / "model" / "model.safetensors") if accelerator.is_main_process else {}
    return {"rows": kept.rows, "responses": responses, "weights": weights, "held": held(directory / LAST)}


def sharded_run(accelerator: Accelerator, name: str, directory: Path) -> dict[str, Any]:
    fsdp2(accelerator, reshard_after_forward=name == "ppo")
    found = run(name, accelerator, directory / "whole")
    accelerator.free_memory()

    stopped, before = make(name, accelerator, directory / "broken", AskedOnce(accelerator.process_index))
    found["stopped"] = gather_object([outcome(stopped.run)])
    found["kept"] = names(directory / "broken" / "checkpoints")
    accelerator.free_memory()

    resumed, after = make(name, accelerator, directory / "broken")
    resumed.run(resume=True)
    found["rows again"] = [*before.rows, *after.rows]
    found["again"] = {
        "weights": load_file(directory / "broken/model/model.safetensors"),
        "held": held(directory / "broken" / LAST),
    }
    found["files"] = [
        [load_file(path) for path in sorted((directory / each / LAST / "shards").iterdir())]
        for each in ("whole", "broken")
    ]

    # One process with all weights saved these.
    resumed.checkpoints.load(directory / "alone" / LAST)
    found["from whole"] = sharding.whole_weights(resumed.step.policy, main=True)
    found["moments from whole"] = [
        value.full_tensor()
        for values in resumed.step.optimizer.state_dict()["state"].values()
        for key, value in values.items()
        if key != "step"
    ]

    # The disk of one process is full.
    if not accelerator.is_main_process:
        filesystem._write_item = lambda *_, **__: full()
    there = names(resumed.checkpoints.root)
    found["full"] = gather_object([outcome(lambda: resumed.checkpoints.save(9, {}))])
    found["untouched"] = names(resumed.checkpoints.root) == there
    if not accelerator.is_main_process:
        with torch.no_grad():
            next(resumed.step.policy.parameters()).to_local().fill_(torch.nan)
    found["bad"] = gather_object([outcome(lambda: resumed.checkpoints.save(9, {}))])
    accelerator.free_memory()
    return found
