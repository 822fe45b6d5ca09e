"""FSDP2: each process trains its shard of the weights.

Accelerate shards the policy and its optimizer in place: blocks of the model on their own, the rest with the policy. A
pass through the policy gathers weights as it goes, so it must be taken by all processes together. Rollouts and
evaluations are different: they call modules inside the policy, and one process may take more passes than another.
While they last every process holds all weights, or gathers a block at a time by agreement (`distributed.turns`).

Models are saved whole, under the same names as by processes that hold all weights; checkpoints in shards
(`distributed.shard_files`).
"""

import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedType,
    DynamoBackend,
    FullyShardedDataParallelPlugin,
    fsdp2_prepare_model,
)
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from cagsr.distributed.turns import by_turns, meet
from cagsr.errors import InputError

__all__ = [
    "ALONE",
    "all_finite",
    "asked_to_shard",
    "check_shards",
    "gathered",
    "is_sharded",
    "load_state",
    "named_weights",
    "prepare",
    "reshards",
    "whole_weights",
]

ALONE = "Launch with data parallelism (examples/accelerate/ddp.yaml)"
WEIGHTS, MOMENTS = "model.safetensors", "optimizer.bin"  # as Accelerate calls them


def asked_to_shard(accelerator: Accelerator) -> bool:
    """Whether FSDP was requested, even where Accelerate runs without it."""
    asked = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    return asked or accelerator.distributed_type == DistributedType.FSDP


def check_shards(accelerator: Accelerator) -> None:
    """Raise InputError for a request of FSDP that would fail, or whose settings this module does not support."""
    if accelerator.distributed_type != DistributedType.FSDP:
        raise InputError(
            f"FSDP: Accelerate shards on GPUs, in processes of a launcher; here ({accelerator.device.type}) it would "
            f"silently leave weights whole. {ALONE}."
        )
    plugin = _plugin(accelerator)
    if plugin.fsdp_version != 2:
        raise InputError(
            f"FSDP: version {plugin.fsdp_version} is not supported: weights cannot be gathered for a rollout. Set "
            "fsdp_version: 2, and fsdp_reshard_after_forward to true or false, as in examples/accelerate/fsdp.yaml."
        )
    policy = plugin.auto_wrap_policy
    # Accelerate binds the blocks' names to it when it shards.
    by_block = getattr(policy, "func", policy) in (None, transformer_auto_wrap_policy)
    compiled = accelerator.state.dynamo_plugin.backend != DynamoBackend.NO  # type: ignore[union-attr] # always set
    nested = accelerator.parallelism_config is not None
    if _is_alone(accelerator):
        raise InputError(
            f"FSDP: one process has nothing to shard. Launch several, or leave FSDP out. {ALONE}."
        )
    for wrong, setting, mend in (
        (isinstance(plugin.cpu_offload, CPUOffloadPolicy), "fsdp_offload_params: true", "Set it to false."),
        (plugin.cpu_ram_efficient_loading, "fsdp_cpu_ram_efficient_loading: true", "Set it to false."),
        (
            plugin.activation_checkpointing,
            "fsdp_activation_checkpointing: true",
            "Set it to false, and train.gradient_checkpointing to true.",
        ),
        (plugin.ignored_modules is not None, "fsdp_ignored_modules", "Leave it out."),
        (not by_block, "fsdp_auto_wrap_policy: SIZE_BASED_WRAP", "Set it to TRANSFORMER_BASED_WRAP."),
        (compiled, "dynamo_backend", "Set it to no."),
        (nested, "parallelism_config", "Leave it out: all processes share one set of shards."),
    ):
        if wrong:
            raise InputError(f"FSDP: not with {setting}. {mend}")


def reshards(accelerator: Accelerator) -> bool:
    """Whether each block's weights are given back between its forward and its backward pass."""
    return bool(_plugin(accelerator).reshard_after_forward)


def is_sharded(module: nn.Module) -> bool:
    """Whether FSDP2 holds a module's weights in shards."""
    return isinstance(module, FSDPModule)


def prepare(
    policy: Any, optimizer: Optimizer, accelerator: Accelerator, frozen: nn.Module | None = None
) -> tuple[nn.Module, Any]:
    """`Accelerator.prepare`, which under FSDP2 shards block by block and computes the numbers of data parallelism.

    A ``frozen`` copy of the policy is sharded as it is. Either may lie in main memory: a block at a time goes to the
    device.

    Raises InputError where the launcher's config names a block that the model does not have.

    *Differs from* what Accelerate does alone: its mixed precision rounds gradients before they are averaged, and the
    log-probabilities that the policy returns. Autocast rounds neither, and is what rollouts run under.
    """
    if accelerator.is_fsdp2:
        plugin = _plugin(accelerator)
        plugin.mixed_precision_policy = None
        blocks: list[str] = sorted(policy.model._no_split_modules or ())
        unknown = sorted(set(plugin.transformer_cls_names_to_wrap or ()) - set(blocks))
        if unknown:
            raise InputError(
                f"FSDP: fsdp_transformer_layer_cls_to_wrap: {', '.join(unknown)} is no block of the model. Leave it "
                f"out, or name its blocks: {', '.join(blocks)}."
            )
        if plugin.transformer_cls_names_to_wrap is None:
            plugin.transformer_cls_names_to_wrap = blocks
        policy.forward = accelerator.autocast()(policy.forward)
        # T5's blocks hand on a view, the position bias; it is only ever added to something.
        warnings.filterwarnings(
            "ignore", r"FSDP2-wrapped module \(FSDP\w*T5Block\) returned a view", UserWarning
        )
        if frozen is not None:
            fsdp2_prepare_model(accelerator, frozen)
    return accelerator.prepare(policy, optimizer)


@contextmanager
def gathered(policies: Iterable[nn.Module], accelerator: Accelerator, at_once: bool = True) -> Iterator[None]:
    """Context manager in which each process takes passes of its own through policies that are in shards.

    It holds all their weights, so that no pass needs another process; or, where they do not fit, not ``at_once``, those
    outside of the blocks, and a block at a time as passes come to it. All processes enter and leave together. Nothing
    is differentiated inside. Without shards this does nothing.
    """
    roots = [policy for policy in dict.fromkeys(policies) if isinstance(policy, FSDPModule)]
    blocks: list[FSDPModule] = []
    for root in roots:
        # The module that is called first takes itself for the root, and in a rollout that is a block. torch has no
        # public way to say which one is.
        root._get_fsdp_state()._lazy_init()
        root.set_reshard_after_forward(False)
        inside = [
            module for module in root.modules() if isinstance(module, FSDPModule) and module is not root
        ]
        for part in (root, *inside) if at_once else (root,):
            part.unshard()
        blocks += inside
    try:
        with nullcontext() if at_once or not roots else by_turns(blocks, accelerator.device):
            yield
    finally:
        for root in roots:
            # Gives the weights back, and forgets the order of passes, by which a backward pass would gather ahead: it
            # may be another one in another process.
            root.reset_iter_state()
        for block in blocks:
            block.set_reshard_after_forward(reshards(accelerator), recurse=False)


def whole_weights(module: nn.Module, main: bool, trained_only: bool = False) -> dict[str, Tensor] | None:
    """Gather all weights by name on the CPU of the ``main`` process; empty in others. None without shards.

    Weights that are tied come once, under their first name. With ``trained_only`` frozen ones are left out, as they are
    where an adapter is saved. All processes call it together.
    """
    if not any(map(is_sharded, module.modules())):
        return None
    meet()
    weights = named_weights(module, trained_only)
    return _gathered({name: weight.detach() for name, weight in weights.items()}, main)


def all_finite(weight: Tensor) -> bool:
    """Whether a weight is finite, or all its shards are; for shards it is a collective call of all processes."""
    found = torch.isfinite(weight.to_local() if isinstance(weight, DTensor) else weight).all()
    if isinstance(weight, DTensor):
        bad = (~found).to(weight.device, torch.int32)
        torch.distributed.all_reduce(bad, group=weight.device_mesh.get_group())
        found = bad == 0
    return bool(found)


@torch.no_grad()
def load_state(policy: nn.Module, optimizer: Any, directory: Path) -> None:
    """Shard what `Accelerator.save_state` wrote of whole weights. Raises ValueError for another model's."""
    weights, own = load_file(directory / WEIGHTS), named_weights(policy, trained_only=True)
    if other := sorted({*weights} ^ {*own}):
        raise ValueError(f"its weights are those of another model: {', '.join(other)}")
    for name, weight in own.items():
        if weights[name].shape != weight.shape:
            raise ValueError(f"it has no {name} of shape {tuple(weight.shape)}")
        weight.copy_(_like(weight, weights.pop(name)))
    moments = torch.load(directory / MOMENTS, weights_only=True, mmap=True)
    trained = [weight for group in optimizer.param_groups for weight in group["params"]]
    for number, of_weight in moments["state"].items():
        weight = trained[number]
        # Adam's step count has another shape than the weight, and is not sharded.
        of_weight |= {
            name: _like(weight, value) for name, value in of_weight.items() if value.shape == weight.shape
        }
    optimizer.load_state_dict(moments)


def _is_alone(accelerator: Accelerator) -> bool:
    return accelerator.num_processes == 1


def _plugin(accelerator: Accelerator) -> FullyShardedDataParallelPlugin:
    plugin = accelerator.state.fsdp_plugin
    assert plugin is not None, "Accelerate has one wherever it shards"
    return plugin


def named_weights(module: nn.Module, trained_only: bool) -> dict[str, Tensor]:
    """Weights and buffers by name as a state dict has them; tied ones once, under their first name."""
    # FSDP2 gives weights back when a state dict is asked for: one process alone would, among gathered ones.
    found: dict[str, Tensor] = {
        name: weight for name, weight in module.named_parameters() if weight.requires_grad or not trained_only
    }
    for path, part in module.named_modules():
        for name, buffer in part.named_buffers(recurse=False):
            if name not in part._non_persistent_buffers_set:
                found[f"{path}.{name}".removeprefix(".")] = buffer
    return found


def _gathered(weights: dict[str, Tensor], main: bool) -> dict[str, Tensor]:
    """Whole tensors on the CPU of the main process; empty in the others."""
    found = {}
    for name, weight in weights.items():
        full = weight.full_tensor() if isinstance(weight, DTensor) else weight
        if main:
            found[name] = full.cpu()
    return found


def _like(weight: Tensor, full: Tensor) -> Tensor:
    """This process's shard of ``full``, sharded as ``weight`` is."""
    full = full.to(weight.device)
    if not isinstance(weight, DTensor):
        return full
    # Every process has read all of it, so none has to send it.
    return distribute_tensor(full, weight.device_mesh, weight.placements, src_data_rank=None)
