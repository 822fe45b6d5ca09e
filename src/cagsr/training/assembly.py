"""From a config to the parts of a run. Only this module, `instruments`, `splits` and the commands read the config."""

import importlib
from collections.abc import Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from transformers import get_scheduler

from cagsr.config import Config
from cagsr.distributed.fsdp import ALONE, asked_to_shard, check_shards, prepare
from cagsr.distributed.launcher import refuse_unseen
from cagsr.distributed.process_group import World
from cagsr.errors import InputError, closest
from cagsr.metrics.endpoint import refuse_secrets
from cagsr.models.load import architecture_of, load_model, load_tokenizer, make_policy, with_lora
from cagsr.models.policy import Policy, Reference
from cagsr.models.sampling import Sampling
from cagsr.models.vllm import Client, Server, VLLMSampler, connect
from cagsr.rewards.reward import Reward, Term, load_preset
from cagsr.rewards.salience import Column, Idf, Salience, Span, Uniform
from cagsr.tasks import CHECKERS, TASKS
from cagsr.tasks.task import Checker
from cagsr.training import kl
from cagsr.training.algorithms import Algorithm
from cagsr.training.step import Step
from cagsr.types import Evidence, Prompt, Signal

__all__ = [
    "base_name",
    "base_of",
    "build_checker",
    "build_policy",
    "build_reward",
    "build_salience",
    "build_sampling",
    "build_step",
    "check_launch",
    "check_signal",
    "check_training",
    "checker_signals",
    "connect_engine",
    "packaged",
]

PACKAGE = Path(str(resources.files("cagsr")))


def packaged(name: str) -> Path:
    """A file that ships with the package."""
    return PACKAGE / name


def base_of(task: str) -> str:
    """Directory of the base model that ships for a task. Raises InputError for a task without one."""
    path = packaged("tasks/bases") / task
    if not path.is_dir():
        raise InputError(
            f"model.name: no base ships for the task {task!r}. Train one with `cagsr sft data.task={task} "
            f"sft.scratch.layers=3 sft.directory=runs/{task}-base` and set model.name=runs/{task}-base/model."
        )
    return str(path)


def base_name(config: Config) -> str:
    """Directory or hub name of the model that training starts from."""
    return config.model.name or base_of(str(config.data.task))


def check_training(config: Config, reward: Reward | None = None) -> None:
    """Raises InputError for what can be scored and evaluated but not trained; needs no model.

    ``reward`` is what reinforcement learning trains on; supervised training has none.
    """
    judge = config.metrics.judge
    if judge is not None and judge.endpoint is not None:
        refuse_secrets(judge.endpoint)  # config.yaml holds it, whether somebody judges here or not
    if config.model.dtype == "bfloat16" and config.model.lora is None:
        raise InputError(
            "model.dtype: bfloat16 weights round most of AdamW's updates away. "
            "Set model.dtype: float32 and train.mixed_precision: bf16, or train an adapter with model.lora."
        )
    if reward is None:
        return
    candidates = config.sampling.candidates
    for kind, compared in (("group", candidates), ("batch", candidates * config.train.prompts_per_step)):
        alone = [term.signal for term in reward.terms if term.standardise == kind]
        if alone and compared < 2:
            raise InputError(
                f"reward: standardise: {kind} of {', '.join(alone)} compares a response with others, and there is "
                "one, so it would always be 0. Set sampling.candidates to 2 or more, or choose another reward."
            )


def check_launch(accelerator: Accelerator, command: str, config: Config | None = None) -> None:
    """Raises InputError under a launcher whose training would fail, or be another than was asked for.

    ``config`` is that of a ``command`` which can train in shards; None for one that cannot.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise InputError(
            "DEEPSPEED: not supported: DeepSpeed takes its optimizer step inside the backward pass, before loss and "
            "gradient were looked at, and once for every micro-batch. Launch with data parallelism "
            "(examples/accelerate/ddp.yaml) or FSDP2 (examples/accelerate/fsdp.yaml)."
        )
    if asked_to_shard(accelerator):
        _check_sharded(accelerator, command, config)
    refuse_unseen(accelerator.num_processes)


def _check_sharded(accelerator: Accelerator, command: str, config: Config | None) -> None:
    if config is None:
        raise InputError(f"FSDP: only `cagsr train` trains in shards, {command} does not. {ALONE}.")
    check_shards(accelerator)
    if config.model.lora is not None:
        raise InputError(f"FSDP: not with model.lora. {ALONE}, or set model.lora to null.")
    if config.sampling.engine == "vllm":
        raise InputError(f"FSDP: not with sampling.engine: vllm. {ALONE}, or set sampling.engine to policy.")


def build_policy(config: Config) -> Policy:
    """Model, tokenizer, LoRA adapter, critic: what is trained, not yet prepared by Accelerate."""
    model, training = config.model, config.train
    name = base_name(config)
    remote = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
    tokenizer = load_tokenizer(name, **remote)
    loaded, dropout = load_model(name, dtype=model.dtype, architecture=model.architecture, **remote)
    torch.manual_seed(training.seed)  # what is initialised here: the adapter and the critic
    policy = make_policy(
        loaded,
        tokenizer,
        layers=config.reward.layers,
        temperature=config.sampling.temperature or 1.0,
        critic=config.algorithm.name == "ppo",
        dropout=dropout,
    )
    if model.lora is not None:
        with_lora(policy, r=model.lora.r, alpha=model.lora.alpha, target_modules=model.lora.target_modules)
    if training.gradient_checkpointing:
        try:
            policy.model.activation_checkpointing_enable({"use_reentrant": False})
        except ValueError as error:
            raise InputError(
                f"train.gradient_checkpointing: {name} does not allow it; set it to false"
            ) from error
    return policy


def build_checker(config: Config) -> Checker | None:
    """The task's own checker, or the one that ``data.checker`` names."""
    name = config.data.checker or config.data.task
    if name is None:
        return None
    known = {**TASKS, **CHECKERS}
    if name in known:
        return known[name]
    if "." not in name:
        raise InputError(
            f"data.checker: no checker {name!r}{closest(name, known)}; "
            "one of your own is named by its path, package.module.name"
        )
    module, _, attribute = name.rpartition(".")
    try:
        checker = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a module of the user's own may raise anything
        raise InputError(
            f"data.checker: no checker {name!r} ({type(error).__name__}: {error}); correct its path"
        ) from error
    if not all(callable(getattr(checker, method, None)) for method in ("check", "quality")):
        raise InputError(
            f"data.checker: {name} is of type {type(checker).__name__}, which has no methods check and quality; "
            "name an object that has both"
        )
    return checker


def build_reward(config: Config, checker: Checker | None) -> Reward:
    """The preset or the terms spelt out; the oracle reads the checker, nothing else does."""
    reward = config.reward
    terms = load_preset(reward.preset)
    if reward.terms is not None:
        terms = [Term(term.signal, term.weight, term.standardise, term.options) for term in reward.terms]
    return Reward(terms, checker_signals(checker))


def check_signal(key: str, name: str, checker: Checker | None) -> None:
    """Raises InputError, with the ``key`` of the config, for the name of no signal."""
    try:
        Reward([Term(name)], checker_signals(checker))
    except InputError as error:
        raise InputError(f"{key}: {error}") from error


def checker_signals(checker: Checker | None) -> dict[str, Signal]:
    """The signals that a checker supplies: ``oracle``, or none without one."""
    return {} if checker is None else {"oracle": partial(_oracle, checker)}


def _oracle(checker: Checker, evidence: Evidence) -> torch.Tensor:
    """[N] the checker's quality of each response, in [0, 1]: an upper bound that uses the answers."""
    rollout = evidence.rollout
    quality = [
        checker.quality(rollout.prompts[row // rollout.group_size].row, text)
        for row, text in enumerate(rollout.responses)
    ]
    return torch.tensor(quality, device=evidence.salience.device)


def build_salience(config: Config, prompts: Sequence[Prompt]) -> Salience:
    given = config.reward.salience
    if given.kind == "idf":
        return Idf(prompts, power=given.power)
    if given.kind == "span":
        return Span(given.start, given.end, given.pattern)
    if given.kind == "column":
        return Column(str(config.data.salience_column))
    return Uniform()


def build_sampling(config: Config) -> Sampling:
    return Sampling(**config.sampling.model_dump(exclude={"engine", "vllm"}))


def connect_engine(config: Config, accelerator: Accelerator) -> Client | None:
    """The client of the server that ``sampling.engine`` names: before a model is loaded, and for `build_step`.

    None for the policy, and in every process but the first. Raises InputError for an encoder-decoder, and what
    `policy.vllm.connect` raises.
    """
    if config.sampling.engine == "policy":
        return None
    model, name = config.model, base_name(config)
    kind = model.architecture
    if kind == "auto":
        kind = architecture_of(name, revision=model.revision, trust_remote_code=model.trust_remote_code)
    if kind != "causal":
        raise InputError(
            f"sampling.engine: vllm writes with causal models only, and {name} is an {kind}; "
            "set sampling.engine to policy"
        )
    return connect(Server(**config.sampling.vllm.model_dump()), accelerator.device, World(accelerator))


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
    placement = algorithm.kl_placement
    if placement == "auto":
        placement = "reward" if algorithm.name == "ppo" else "loss"
    return Step(
        policy=policy,
        network=network,
        reference=reference,
        observer=reference if config.reward.observer == "reference" else policy,
        reward=reward,
        salience=salience,
        algorithm=Algorithm(
            name=algorithm.name,
            kl_placement=placement,
            clip=algorithm.clip,
            value_clip=algorithm.value_clip,
            value_coefficient=algorithm.value_coefficient,
            entropy_coefficient=algorithm.entropy_coefficient,
            discount=algorithm.gamma,
            trace=algorithm.gae_lambda,
            normalisation=algorithm.loss_normalisation,
            epochs=algorithm.epochs,
            minibatches=algorithm.minibatches,
        ),
        sampling=build_sampling(config),
        leash=kl.KLController(algorithm.kl_coefficient, algorithm.kl_target),
        optimizer=optimizer,
        scheduler=scheduler,
        accelerator=accelerator,
        groups_per_pass=_groups_per_pass(config, accelerator.num_processes),
        max_grad_norm=training.max_grad_norm,
        sampler=policy
        if config.sampling.engine == "policy"
        else VLLMSampler(policy, client, World(accelerator)),
    )
