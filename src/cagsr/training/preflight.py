"""Checks made before a model is loaded: settings that cannot be trained, and unsupported launchers."""

from accelerate import Accelerator, DistributedType

from cagsr.config import Config
from cagsr.config.schema import Sampling
from cagsr.distributed.fsdp import ALONE, asked_to_shard, check_shards, reshards
from cagsr.distributed.launcher import refuse_unseen
from cagsr.errors import InputError
from cagsr.metrics.endpoint import refuse_secrets
from cagsr.models.four_bits import is_quantised
from cagsr.models.lora import is_adapted
from cagsr.models.policy import Policy
from cagsr.rewards.reward import Reward
from cagsr.training.policy_losses import find_loss

__all__ = [
    "check_launch",
    "check_training",
    "refuse_merging",
    "refuse_narrow_weights",
    "refuse_quantised",
]


def check_training(config: Config, reward: Reward | None = None) -> None:
    """Raise InputError for a config that can be scored and evaluated but not trained; needs no model.

    ``reward`` is what reinforcement learning trains on; supervised training has none.
    """
    judge = config.metrics.judge
    if judge is not None and judge.endpoint is not None:
        refuse_secrets(judge.endpoint)  # config.yaml holds it, whether or not a judge is used here
    if config.model.dtype == "bfloat16" and config.model.lora is None:
        raise InputError(
            "model.dtype: bfloat16 weights round most of AdamW's updates away. "
            "Set model.dtype: float32 and train.mixed_precision: bf16, or train an adapter with model.lora."
        )
    if config.model.load_in_4bit and config.model.lora is None:
        raise InputError(
            "model.load_in_4bit: weights in four bits cannot be trained. Train an adapter on them: set model.lora."
        )
    if reward is None:
        return
    find_loss(config.algorithm.loss)
    candidates = config.sampling.candidates
    for kind, compared in (("group", candidates), ("batch", candidates * config.train.prompts_per_step)):
        alone = [term.signal for term in reward.terms if term.standardise == kind]
        if alone and compared < 2:
            raise InputError(
                f"reward: standardise: {kind} of {', '.join(alone)} compares a response with others, and there is "
                "one, so it would always be 0. Set sampling.candidates to 2 or more, or choose another reward."
            )


def refuse_narrow_weights(policy: Policy) -> None:
    """Raises InputError where weights of fewer than 32 bits would be trained: AdamW's updates are rounded away."""
    if is_quantised(policy.model) and not is_adapted(policy.model):
        raise InputError("model: its weights are quantised and cannot be trained; train an adapter with lora")
    narrow = {str(p.dtype).removeprefix("torch.") for p in policy.parameters() if p.requires_grad} - {
        "float32"
    }
    if narrow:
        raise InputError(
            f"model: its trainable weights are {', '.join(sorted(narrow))}, which rounds most of AdamW's updates away. "
            "Load it with dtype=torch.float32 and set mixed_precision='bf16', or train an adapter with lora."
        )
    if not any(p.requires_grad for p in policy.parameters()):
        raise InputError(
            "model: none of its weights is trainable; set requires_grad, or train an adapter with lora"
        )


def refuse_quantised(policy: Policy, sampling: Sampling, accelerator: Accelerator) -> None:
    """Raises InputError where quantised weights would be in shards, where others would write, and for an adapter on
    them that could only be saved merged.
    """
    if not is_quantised(policy.model):
        return
    if asked_to_shard(accelerator):
        raise InputError(f"FSDP: not with quantised weights. {ALONE}, or name a model of whole weights.")
    if sampling.engine == "vllm" or sampling.dtype is not None:
        key = "engine: vllm" if sampling.engine == "vllm" else "dtype"
        raise InputError(f"sampling.{key}: not with a model whose weights are quantised; leave it out")
    if is_adapted(policy.model) and policy.base is None:
        raise InputError(
            "model: an adapter on quantised weights is saved alone, and this one cannot be: its base lies nowhere by "
            "itself, or more than an adapter named 'default' is trained. Load both by name, or set lora for a new one."
        )


def refuse_merging(policy: Policy, accelerator: Accelerator) -> None:
    """Raises InputError under FSDP for an adapter that could only be saved merged: no process holds all weights."""
    if asked_to_shard(accelerator) and is_adapted(policy.model) and policy.base is None:
        raise InputError(
            "FSDP: the adapter's base lies nowhere by itself, so that it would be saved merged into weights that no "
            f"process holds whole. Save the base as a directory and name that as model.name; or "
            f"{ALONE[0].lower()}{ALONE[1:]}."
        )


def check_launch(accelerator: Accelerator, command: str, config: Config | None = None) -> None:
    """Raise InputError under a launcher whose training would fail, or be another than was asked for.

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
    elif config is not None and not config.train.gather_for_rollouts:
        raise InputError(
            "train.gather_for_rollouts: false is for weights in shards, and here every process holds them whole. "
            "Launch with FSDP2 (examples/accelerate/fsdp.yaml), or leave it out."
        )
    refuse_unseen(accelerator.num_processes)


def _check_sharded(accelerator: Accelerator, command: str, config: Config | None) -> None:
    if config is None:
        raise InputError(f"FSDP: only `cagsr train` trains in shards, {command} does not. {ALONE}.")
    check_shards(accelerator)
    if config.sampling.engine == "vllm" and config.model.lora is None:
        raise InputError(
            f"FSDP: sampling.engine: vllm takes an adapter from shards, and not all weights. Set model.lora, or "
            f"sampling.engine to policy; or {ALONE[0].lower()}{ALONE[1:]}."
        )
    if not (config.train.gather_for_rollouts or reshards(accelerator)):
        raise InputError(
            "FSDP: train.gather_for_rollouts: false gathers a block at a time in rollouts, and "
            "fsdp_reshard_after_forward: false all of them in an update. Set that to true."
        )
    if config.model.load_in_4bit:
        raise InputError(f"FSDP: not with model.load_in_4bit. {ALONE}, or leave that out.")
    if config.sampling.dtype is not None:
        raise InputError(f"FSDP: not with sampling.dtype. {ALONE}, or set sampling.dtype to null.")
