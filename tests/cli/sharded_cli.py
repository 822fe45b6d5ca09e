"""``cagsr`` under FSDP2 on CPU processes, in which Accelerate itself does not shard: `sharded.fsdp2` says how."""

from typing import Any

import accelerate

import forked
from cagsr.training import trainer as train
from sharded import fsdp2


def accelerator(**settings: Any) -> accelerate.Accelerator:
    return fsdp2(accelerate.Accelerator(**settings))


def sharded(arguments: list[str]) -> None:
    train.accelerated = accelerator
    forked.cagsr(arguments)
