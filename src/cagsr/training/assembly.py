"""Assembly of a training: from a config and a claimed directory to policy, `Step`, loop and recorder."""

import json
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_scheduler

from cagsr.config import Config
from cagsr.data import splits
from cagsr.data.row_messages import say_few, say_rows
from cagsr.data.splits import DataSets
from cagsr.distributed.fsdp import prepare
from cagsr.distributed.process_group import World
from cagsr.errors import InputError
from cagsr.evaluation.chosen_reward import choose_reward
from cagsr.evaluation.evaluator import Evaluator, measure_signals
from cagsr.evaluation.learnt_heads import HEADS, keep_heads
from cagsr.evaluation.shown_prompt import say_prompt
from cagsr.io.quiet_libraries import warn
from cagsr.io.shutdown import Stops
from cagsr.io.terminal import say
from cagsr.models.build import build_policy, check_sampling, connect_engine
from cagsr.models.load import saved_form
from cagsr.models.policy import Policy
from cagsr.models.reference import Reference
from cagsr.models.sampling import Sampler
from cagsr.models.vllm import VLLMSampler, refuse_longer
from cagsr.models.vllm_server import Client
from cagsr.models.writing_copy import WritingCopy
from cagsr.rewards.presets import build_reward
from cagsr.rewards.reward import Reward
from cagsr.rewards.salience import Salience
from cagsr.runs.directory import fingerprint
from cagsr.runs.identity import model_of, of_data
from cagsr.runs.session import Claim
from cagsr.tasks.task import Checker
from cagsr.training import kl
from cagsr.training.algorithms import Algorithm
from cagsr.training.candidate_log import Shown
from cagsr.training.collapse_watch import CollapseWatch
from cagsr.training.loop import TrainingLoop
from cagsr.training.preflight import (
    refuse_merging,
    refuse_narrow_weights,
    refuse_quantised,
)
from cagsr.training.recorder import Recorder
from cagsr.training.step import Step
from cagsr.types import Prompt

__all__ = ["Assembled", "assemble", "build_step", "groups_per_pass"]


class Assembled(NamedTuple):
    """A training that is ready to begin, or to go on."""

    policy: Policy
    loop: TrainingLoop
    recorder: Recorder


def assemble(
    config: Config,
    claim: Claim,
    console: Console,
    *,
    loaded: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase | None,
    datasets: DataSets,
    checker: Checker | None,
    evaluate: bool,
    shows_prompt: bool,
) -> Assembled:
    """Read the data, load the policy, settle its reward and build the loop of a run whose directory is claimed.

    ``loaded``, ``tokenizer`` and ``datasets`` are what the caller has in memory; the config names the rest. Without
    ``evaluate`` nothing is evaluated. The console is told of the rows, and with ``shows_prompt`` of the first prompt.
    """
    rows = splits.read_rows(config, "train", datasets=datasets)
    client = _engine(config, console, claim, loaded)
    policy = build_policy(config, loaded, tokenizer)
    refuse_narrow_weights(policy)
    refuse_quantised(policy, config.sampling, claim.accelerator)
    refuse_merging(policy, claim.accelerator)
    check_sampling(policy, console)
    prompts, report = splits.build_prompts(config, policy, "train", rows=rows)
    say_rows(console, "train prompts", report)
    refuse_longer(client, prompts, config.sampling, World(claim.accelerator))
    _to_device(policy, config, claim.accelerator)
    kept, model = claim.directory / HEADS, model_of(claim.identity)
    config, salience, heads = choose_reward(
        policy, config, prompts, World(claim.accelerator), console, kept=kept, model=model
    )
    if shows_prompt:
        say_prompt(console, prompts, policy, salience)
    if (uncovered := salience.uncovered(prompts)) is not None:
        warn(console, uncovered)
    reward = build_reward(config.reward, checker)
    step = build_step(config, policy, reward, salience, claim.accelerator, client)
    evaluator = _evaluator(config, step, checker, datasets, console) if evaluate else None
    evaluated = of_data(evaluator.prompts, "evaluation data") if evaluator else {}
    chosen = {"reward that was chosen": heads["preset"]} if heads and "preset" in heads else {}
    claim.start(of_data(prompts) | evaluated | chosen)
    if claim.accelerator.is_main_process:
        keep_heads(heads, kept)
    loop = _loop(config, claim, console, step, prompts, evaluator)
    shown = Shown.of_run(config.run.log_candidates, policy.tokenizer, salience, config.train.steps)
    return Assembled(policy, loop, Recorder(config, claim, shown, evaluator, console, saved_form(policy)))


def _engine(config: Config, console: Console, claim: Claim, loaded: PreTrainedModel | None) -> Client | None:
    if config.sampling.engine == "vllm":
        server = config.sampling.vllm
        say(
            console,
            f"responses come from vLLM at {server.base_url}; waiting for it, {server.timeout:g} s at most",
        )
    return connect_engine(config, claim.accelerator, claim.directory, loaded)


def _evaluator(
    config: Config, step: Step, checker: Checker | None, datasets: DataSets, console: Console
) -> Evaluator | None:
    if not splits.has_evaluation_data(config):
        return None
    rows = splits.read_rows(config, "development", datasets=datasets)
    prompts, report = splits.build_prompts(config, step.policy, "development", rows=rows)
    say_rows(console, "development prompts", report)
    say_few(console, len(prompts))
    return Evaluator(
        step.policy,
        prompts,
        step.sampling,
        step.reward,
        measure_signals(step.reward, step.reference, step.salience),
        checker,
        step.world,
        config.train.micro_batch,
    )


def _loop(
    config: Config,
    claim: Claim,
    console: Console,
    step: Step,
    prompts: list[Prompt],
    evaluator: Evaluator | None,
) -> TrainingLoop:
    return TrainingLoop(
        step=step,
        prompts=prompts,
        schedule=config.train,
        watch=CollapseWatch(config.watch),
        directory=claim.directory,
        checkpoints=claim.checkpoints(config.train.keep_checkpoints, console),
        stops=Stops(config.run.max_seconds),
        identity=fingerprint([json.dumps(claim.identity, sort_keys=True)]),
        evaluate=evaluator,
    )


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
    _to_device(policy, config, accelerator)
    reference = Reference(policy, shares=not accelerator.is_fsdp2)  # which shards each by itself
    sampler = _sampler(config, policy, accelerator, client)
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer: Any = torch.optim.AdamW(trained, lr=training.learning_rate, weight_decay=training.weight_decay)
    network, optimizer = prepare(policy, optimizer, accelerator, reference.copy)
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
        groups_per_pass=groups_per_pass(config, accelerator.num_processes),
        max_grad_norm=training.max_grad_norm,
        sampler=sampler,
        shown=config.run.log_candidates,
    )


def _to_device(policy: Policy, config: Config, accelerator: Accelerator) -> None:
    """Move a policy to the device, unless it may not fit there whole: shards go there a block at a time."""
    if config.train.gather_for_rollouts:
        policy.to(accelerator.device)


def _sampler(
    config: Config, policy: Policy, accelerator: Accelerator, client: Client | None
) -> Sampler | None:
    if config.sampling.engine == "vllm":
        return VLLMSampler(policy, client, World(accelerator))
    return None if config.sampling.dtype is None else WritingCopy(policy)


def groups_per_pass(config: Config, processes: int) -> int:
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
