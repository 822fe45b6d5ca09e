"""FSDP2 on CPU processes, where Accelerate leaves weights whole: it shards on GPUs and their like only."""

import os

from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

PLUGIN = {"fsdp_version": 2, "auto_wrap_policy": "transformer_based_wrap"}


def fsdp2(accelerator: Accelerator, **settings) -> Accelerator:
    """The same accelerator, as it would be where Accelerate shards: from here on all of it is its own code.

    Without ``settings`` it is as the launcher's config says.
    """
    launched = os.environ.get("ACCELERATE_USE_FSDP") == "true"
    plugin = FullyShardedDataParallelPlugin(**({} if launched else {**PLUGIN, **settings}))
    if accelerator.mixed_precision != "no":
        plugin.set_mixed_precision(accelerator.mixed_precision)
    for state in (PartialState._shared_state, AcceleratorState._shared_state):
        state["distributed_type"] = DistributedType.FSDP
    AcceleratorState._shared_state["fsdp_plugin"] = plugin
    return accelerator
