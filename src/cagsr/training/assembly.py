"""From config sections to a `Step`: optimizer, schedule, reference, algorithm."""

from typing import Any

import torch
from accelerate import Accelerator
from transformers import get_scheduler

from cagsr.config import Config
from cagsr.distributed.fsdp import prepare
from cagsr.distributed.process_group import World
from cagsr.errors import InputError
from cagsr.models.policy import Policy
from cagsr.models.reference import Reference
from cagsr.models.vllm import Client, VLLMSampler
from cagsr.rewards.reward import Reward
from cagsr.rewards.salience import Salience
from cagsr.training import kl
from cagsr.training.algorithms import Algorithm
from cagsr.training.step import Step

__all__ = ["build_step"]


def _groups_per_pass(config: Config, processes: int) -> int:
    """How many whole groups go through the model at once: what fits, and divides a minibatch evenly."""
    prompts, minibatches = config.train.prompts_per_step, config.algorithm.minibatches
    if prompts % (processes * minibatches):
        raise InputError(
            f"train.prompts_per_step ({prompts}) must be a multiple of processes x algorithm.minibatches "
            f"({processes} x {minibatches})"
        )
    groups = prompts // (processes * minibatches)
    fitting = max(1, config.train.micro_batch // config.sampling.candidates)
    return max(size for size in range(1, groups + 1) if groups % size == 0 and size <= fitting)


def build_step(
    config: Config,
    policy: Policy,
    reward: Reward,
    salience: Salience,
    accelerator: Accelerator,
    client: Client | None = None,
) -> Step:
    """Optimizer, schedule, reference, algorithm: everything between prompts and an update.

    ``client`` is what `connect_engine` gave. The reference is taken here, from the policy as it is: load a checkpoint
    only afterwards.
    """
    training, algorithm = config.train, config.algorithm
    policy.to(accelerator.device)
    reference = Reference(policy)
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer: Any = torch.optim.AdamW(trained, lr=training.learning_rate, weight_decay=training.weight_decay)
    network, optimizer = prepare(policy, optimizer, accelerator)
    updates = training.steps * algorithm.epochs * algorithm.minibatches
    warmup = training.warmup_steps * algorithm.epochs * algorithm.minibatches
    scheduler = get_scheduler(
        training.schedule, optimizer, num_warmup_steps=warmup, num_training_steps=updates
    )
    return Step(
        policy=policy,
        network=network,
        reference=reference,
        observer=reference if config.reward.observer == "reference" else policy,
        reward=reward,
        salience=salience,
        algorithm=Algorithm(algorithm),
        sampling=config.sampling,
        kl_controller=kl.KLController(algorithm.kl_coefficient, algorithm.kl_target),
        optimizer=optimizer,
        scheduler=scheduler,
        accelerator=accelerator,
        groups_per_pass=_groups_per_pass(config, accelerator.num_processes),
        max_grad_norm=training.max_grad_norm,
        sampler=None
        if config.sampling.engine == "policy"
        else VLLMSampler(policy, client, World(accelerator)),
    )
