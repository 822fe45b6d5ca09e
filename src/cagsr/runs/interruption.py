"""Work that a stop may throw away: a rollout, an evaluation, a step of an optimizer that has not come to its end."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.nn.modules.module import register_module_forward_pre_hook

from cagsr.distributed.process_group import World
from cagsr.io.shutdown import Stops, Unfinished

__all__ = ["interruptible"]


@contextmanager
def interruptible(stops: Stops, world: World) -> Iterator[None]:
    """Context manager in which a request to stop is raised as `Unfinished` before the next module of any network runs.

    So it is answered between two layers, whoever asked for the pass: sampling, the observer, a knockout, a judge of
    texts. Nothing of the block may be kept but what it had completed before its last pass began.
    A process among several goes on: the others would wait for it in their next collective operation.
    """

    def look(module: object, given: object) -> None:
        request = stops.overdue()
        if request:
            raise Unfinished(request)

    if world.size > 1:
        yield
        return
    hook = register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        hook.remove()
