"""Checkpoints in shards: each process writes its part of weights and moments to files, and reads the part it needs.

torch.distributed.checkpoint does both, in safetensors. Nobody holds the whole model; other numbers of processes, one
with all weights among them, read the same files.
"""

import shutil
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from cagsr.distributed.fsdp import named_weights
from cagsr.errors import StorageError

__all__ = ["has_shards", "load_shards", "save_shards", "weights_in"]

SHARDS = "shards"
WEIGHT, MOMENT = "weight.", "moment."
FILE = 2**28
"""Bytes of this process after which another file begins. Main memory holds a file three times while it is written."""
PATIENCE = 60
"""Seconds to wait for the files of other processes."""


def has_shards(directory: Path) -> bool:
    """Whether a checkpoint is in shards."""
    return (directory / SHARDS).is_dir()


def save_shards(policy: nn.Module, optimizer: Any, directory: Path) -> None:
    """Write this process's part of the trained weights, and of what the optimizer keeps of each.

    All processes call it together. What fails in one is raised in all of them: OSError on a full disk. Raises
    StorageError where this process does not see what others wrote, and where weights are gathered just now: the
    optimizer knows them as shards.
    """
    weights = named_weights(policy, trained_only=True)
    if unknown := len(optimizer.state.keys() - {*weights.values()}):
        raise StorageError(
            f"{directory} cannot be written: {unknown} weights are gathered in the middle of a pass; save between two"
        )
    state = {WEIGHT + name: weight.detach() for name, weight in weights.items()}
    for name, weight in weights.items():
        kept = optimizer.state.get(weight, {})
        state |= {f"{MOMENT}{name}.{key}": value for key, value in kept.items()}
    before = accumulate((_bytes(value) for value in state.values()), initial=0)
    files = {name: 1 + begun // FILE for name, begun in zip(state, before, strict=False)}
    writer = HuggingFaceStorageWriter(str(directory / SHARDS), files, save_distributed=True)
    with _failing_together():
        dcp.save(state, storage_writer=writer)
    try:
        _wait_for(state, directory)
    except StorageError:
        shutil.rmtree(directory / SHARDS, ignore_errors=True)  # the first process removes what it sees
        raise


def load_shards(policy: nn.Module, optimizer: Optimizer, directory: Path) -> None:
    """Load what `save_shards` wrote, into a policy and an optimizer in shards or whole.

    All processes call it together. Raises ValueError for a checkpoint of another model.
    """
    weights, kept = named_weights(policy, trained_only=True), _kept(directory)
    state = {WEIGHT + name: weight.detach() for name, weight in weights.items()}
    if other := sorted({name for name in kept if name.startswith(WEIGHT)} ^ {*state}):
        raise ValueError(f"its weights are those of another model: {', '.join(other)}")
    for name, weight in state.items():
        if kept[name].size != weight.shape:
            raise ValueError(f"it has no {name.removeprefix(WEIGHT)} of shape {tuple(weight.shape)}")
    moments: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, of in kept.items():
        if name.startswith(MOMENT):
            weight, _, key = name.removeprefix(MOMENT).rpartition(".")
            # Adam's step count has another shape than the weight, and is whole.
            like = weights[weight].detach() if of.size == weights[weight].shape else torch.empty(of.size)
            moments[weight][key] = state[name] = torch.zeros_like(like, dtype=of.properties.dtype)
    _read(state, directory)
    trained = [weight for group in optimizer.param_groups for weight in group["params"]]
    number = {id(weight): number for number, weight in enumerate(trained)}
    of_weight = {number[id(weights[name])]: values for name, values in moments.items()}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": of_weight})


def weights_in(directory: Path) -> dict[str, Tensor]:
    """The trained weights of a checkpoint in shards, whole, by name; in one process alone."""
    sizes = {name: of for name, of in _kept(directory).items() if name.startswith(WEIGHT)}
    state = {name: torch.empty(of.size, dtype=of.properties.dtype) for name, of in sizes.items()}
    _read(state, directory, alone=True)
    return {name.removeprefix(WEIGHT): value for name, value in state.items()}


def _kept(directory: Path) -> dict[str, TensorStorageMetadata]:
    """What the files hold, by name. Raises ValueError where parts of it are missing, which torch would leave as is."""
    found = HuggingFaceStorageReader(str(directory / SHARDS)).read_metadata().state_dict_metadata
    kept = {name: of for name, of in found.items() if isinstance(of, TensorStorageMetadata)}
    for name, of in kept.items():
        if sum(chunk.sizes.numel() for chunk in of.chunks) != of.size.numel():
            raise ValueError(f"parts of {name} are missing")
    return kept


def _wait_for(state: Mapping[str, Tensor], directory: Path) -> None:
    """Return once this process sees the files of all: a network's file system may show them after a while."""
    for _ in range(PATIENCE):
        with suppress(ValueError, OSError, SafetensorError):
            kept = _kept(directory)
            if all(name in kept and kept[name].size == value.shape for name, value in state.items()):
                return
        time.sleep(1)
    raise StorageError(
        f"{directory / SHARDS} has only some of the files that the processes wrote; run.directory must be in a file "
        "system that all of them share"
    )


def _read(state: dict[str, Tensor], directory: Path, alone: bool = False) -> None:
    reader = HuggingFaceStorageReader(str(directory / SHARDS))
    with _failing_together(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
        dcp.load(state, storage_reader=reader, no_dist=alone or not dist.is_initialized())


def _bytes(value: Tensor) -> int:
    return value.to_local().nbytes if isinstance(value, DTensor) else value.nbytes


@contextmanager
def _failing_together() -> Iterator[None]:
    """Context manager that raises what failed in some process, in place of torch's account of it."""
    try:
        yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from error
