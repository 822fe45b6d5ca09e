"""Gathering one block at a time under FSDP2, in passes whose number differs from process to process.

An all-gather needs every process, and a rollout, an evaluation or a knockout takes as many passes as its responses
need. So before a block runs the processes agree on the one that is gathered next: of those that are wanted the first in
the model's order, so that a process which is ahead waits for the others. A process that wants another block, or has no
pass left, helps to gather this one and gives it back at once. Nobody computes for others.

*Differs from* transformers' ``synced_gpus``, where a process that has written its responses goes on with passes that
nobody needs, and where all must take the same passes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule

__all__ = ["by_turns", "meet"]

_current: list["Turns"] = []  # that of the context manager which is open; World's operations wait for it


class Turns:
    """Agreement of all processes on the block that is gathered next."""

    def __init__(self, blocks: Sequence[FSDPModule], device: torch.device):
        self.blocks, self.device = blocks, device

    def gather(self, wanted: int) -> None:
        """Return with block ``wanted`` gathered; with ``len(blocks)``, none, once no process wants any more."""
        while True:
            lowest = torch.tensor([wanted], device=self.device)
            dist.all_reduce(lowest, dist.ReduceOp.MIN)
            turn = int(lowest)
            if turn == len(self.blocks):
                return
            self.blocks[turn].unshard()
            if turn == wanted:
                return
            self.blocks[turn].reshard()


def meet() -> None:
    """Wait for the other processes, and gather what their passes need until they come here too.

    To be called before any other collective operation. Outside of `by_turns` it does nothing.
    """
    for turns in _current:
        turns.gather(len(turns.blocks))


@contextmanager
def by_turns(blocks: Sequence[FSDPModule], device: torch.device) -> Iterator[None]:
    """Context manager in which each process runs ``blocks`` as often as it likes, and one at a time is gathered.

    All processes enter and leave together. Nothing is differentiated inside.
    """
    turns = Turns(blocks, device)

    def before(number: int, module: object, given: object) -> None:
        torch.clear_autocast_cache()  # it keeps a cast of every weight, those that were given back too
        turns.gather(number)

    hooks = []
    for number, block in enumerate(blocks):
        # Ahead of FSDP2's own, which then finds the block gathered; after the pass FSDP2 gives it back.
        block.set_reshard_after_forward(True, recurse=False)
        hooks.append(block.register_forward_pre_hook(partial(before, number), prepend=True))  # type: ignore[attr-defined]
    _current.append(turns)
    try:
        yield
        meet()
    finally:
        _current.remove(turns)
        for hook in hooks:
            hook.remove()
