"""Losses of seeded runs of 8 steps: a change that should change nothing reproduces them to the bit.

``python tests/goldens/golden_losses.py --write`` writes losses.json again, for a change that is meant to move them.
"""

import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny
from cagsr.config.schema import AlgorithmSettings, Loss, Term
from cagsr.rewards.reward import Reward
from cagsr.training.algorithms import Algorithm
from cagsr.training.kl import KLController
from cagsr.training.prompt_order import prompts_for, step_seed

PATH = Path(__file__).with_name("losses.json")
STEPS = 8
TERMS = [
    Term("coverage", weight=4.0, standardise="none"),
    Term("surprise", weight=1.0, standardise="group"),
    Term("repetition", weight=1.0, standardise="batch"),
    Term("unfinished", weight=0.5, standardise="none"),
]
ALGORITHMS = {
    "ppo": Algorithm(AlgorithmSettings(name="ppo", kl_placement="reward", epochs=2, minibatches=2)),
    "grpo": Algorithm(AlgorithmSettings(name="grpo", loss_normalisation="sequence")),
    # Two optimizer steps a rollout, so that ratios leave 1 and the losses differ.
    "dr-grpo": Algorithm(AlgorithmSettings(name="dr-grpo", kl_estimate="k3", epochs=2)),
    **{
        name: Algorithm(AlgorithmSettings(epochs=2, loss=Loss(name=loss, options=options)))
        for name, loss, options in (
            ("asymmetric", "clipped", {"clip": 0.02, "clip_high": 0.03}),
            ("cispo", "cispo", {"largest": 1.05}),
            ("gspo", "gspo", {}),
        )
    },
}
RUNS = [f"{name} {algorithm}" for name in ("t5", "llama") for algorithm in ALGORITHMS]


def losses(run: str) -> list[float]:
    """The loss of every step, on one thread: the order of a sum is part of its result."""
    name, algorithm = run.split()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        policy = tiny.policy(name, critic=algorithm == "ppo", extra_eos=20)
        step = tiny.make_step(
            policy,
            algorithm=ALGORITHMS[algorithm],
            reward=Reward(TERMS),
            kl_controller=KLController(0.05, target=1.0, horizon=200),
            groups_per_pass=1,
            max_grad_norm=1.0,
        )
        prompts = tiny.prompts(policy, (3, 7, 2, 5, 4))
        found = []
        for number in range(STEPS):
            collected = step.collect(prompts_for(prompts, number, 2, seed=0), step_seed(0, number))
            found.append(step.update(collected.batches)["loss"])
            step.kl_controller.observe(
                number / 20, responses=6
            )  # a KL that grows, and stays below its target
        return found
    finally:
        torch.set_num_threads(threads)


def belongs_to() -> dict[str, str]:
    """What the bits depend on: kernels differ between versions, instruction sets and makers of processors."""
    return {
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "processor": _maker(),
    }


def _maker() -> str:
    """The matrix library takes another path on another maker's processor."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    named = [line.split(":")[1].strip() for line in lines if line.startswith("vendor_id")]
    return named[0] if named else platform.machine()


def read() -> dict[str, Any]:
    return json.loads(PATH.read_text(encoding="utf-8"))


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    runs = {run: [loss.hex() for loss in losses(run)] for run in RUNS}
    PATH.write_text(
        json.dumps({"belongs_to": belongs_to(), "losses": runs}, indent=1) + "\n", encoding="utf-8"
    )
    print(f"{PATH.name}: {', '.join(f'{run} ends at {losses_[-1]}' for run, losses_ in runs.items())}")
