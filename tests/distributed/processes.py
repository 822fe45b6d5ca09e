"""Three steps of PPO and of GRPO, by however many processes there are."""

from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

import tiny
from cagsr.config.schema import AlgorithmSettings, Term
from cagsr.models.policy import Policy
from cagsr.rewards.reward import Reward
from cagsr.training.algorithms import Algorithm
from cagsr.training.prompt_order import prompts_for, step_seed
from cagsr.training.step_metrics import measure, shuffled_share

RUNS = {
    "grpo": ("llama", Algorithm(AlgorithmSettings(name="grpo", loss_normalisation="sequence", epochs=2))),
    "ppo": ("t5", Algorithm(AlgorithmSettings(name="ppo", kl_placement="reward", epochs=2))),
}


def make_policy(name: str) -> Policy:
    return tiny.policy(RUNS[name][0], critic=name == "ppo", extra_eos=20)


def run(name: str, accelerator: Accelerator) -> dict[str, Any]:
    """Responses of every step in order of their prompts, the rows of numbers, and the weights at the end."""
    policy = make_policy(name)
    # Standardised over the batch, which is that of all processes.
    reward = Reward([Term("low_tokens", standardise="batch")], extra={"low_tokens": tiny.low_tokens})
    # Adam divides by the size of a gradient, rounding included; its epsilon keeps it from showing.
    step = tiny.make_step(
        policy,
        accelerator=accelerator,
        algorithm=RUNS[name][1],
        reward=reward,
        groups_per_pass=1,
        learning_rate=3e-3,
        optimizer=partial(torch.optim.AdamW, eps=1e-4),
    )
    prompts = tiny.prompts(policy, (3, 7, 2, 5, 4, 6))
    responses, rows = [], []
    for number in range(3):
        chosen = step.world.share(prompts_for(prompts, number, 4, seed=0))
        collected = step.collect(chosen, step_seed(0, number))
        responses.append(gather_object(list(collected.rollout.responses)))
        row = measure(collected, step.world)
        share = shuffled_share(step, collected)
        assert (share is None) == (len(chosen) == 1)
        rows.append({**row, **step.update(collected.batches)})
    return {"responses": responses, "rows": rows, "weights": tiny.weights_of(policy)}


def run_all(accelerator: Accelerator) -> dict[str, Any]:
    return {name: run(name, accelerator) for name in RUNS}
