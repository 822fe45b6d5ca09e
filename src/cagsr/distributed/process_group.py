"""Process group of a run: the collective operations by which several processes compute what one would."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, gather_object
from torch import Tensor

from cagsr.distributed.launcher import refuse_other_settings
from cagsr.distributed.turns import meet
from cagsr.errors import CagsrError, InputError

__all__ = ["World", "accelerated"]

Value = TypeVar("Value")
PATIENCE = timedelta(hours=3)
"""How long a process waits for another: one may look for heads, or hash a large checkpoint, while the others wait. A
process that ended is noticed by its launcher at once."""


def accelerated(**settings: Any) -> Accelerator:
    """An Accelerator with these settings and those of its launcher. Raises InputError for settings that it refuses."""
    refuse_other_settings(settings.get("mixed_precision"))
    if AcceleratorState._shared_state and PartialState().num_processes == 1:
        # Accelerate keeps the precision of a process's first Accelerator: another trainer's, in a notebook say.
        AcceleratorState._reset_state()
    patience = InitProcessGroupKwargs(timeout=PATIENCE)
    try:
        return Accelerator(**settings, kwargs_handlers=[patience])
    except ValueError as error:
        raise InputError(
            f"accelerate launch: Accelerate refuses its config: {error}. Correct it there, or begin with one of "
            "examples/accelerate."
        ) from error


class World:
    """Collective operations over all processes, each of which holds the same number of groups, in rank order.

    With one process every operation is the identity.
    """

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        self.size, self.rank = accelerator.num_processes, accelerator.process_index
        self.device = accelerator.device

    def gather(self, local_N: Tensor) -> Tensor:
        """All-gather: [N ...] of this process -> [size * N ...] of all, in rank order."""
        meet()
        gathered = self._accelerator.gather(local_N.contiguous())
        assert isinstance(gathered, Tensor)
        return gathered

    def mine(self, global_N: Tensor) -> Tensor:
        """This process's part of a gathered tensor: the inverse of `gather`."""
        return global_N.chunk(self.size)[self.rank]

    def total(self, local: Tensor) -> Tensor:
        """All-reduce: elementwise sum over processes. May lie on the CPU, where float64 exists whatever the device."""
        if self.size == 1:
            return local
        meet()
        reduced = self._accelerator.reduce(local.to(self.device), reduction="sum")
        assert isinstance(reduced, Tensor)
        return reduced.to(local.device)

    def share(self, items: list) -> list:
        """This process's consecutive part of a list whose length the number of processes divides."""
        each = len(items) // self.size
        return items[self.rank * each : (self.rank + 1) * each]

    def joined(self, items: list) -> list:
        """All-gather of lists: those of all processes one after another, in rank order; the inverse of `share`."""
        meet()
        return items if self.size == 1 else gather_object(items)

    def from_main(self, value: Value) -> Value:
        """Broadcast: the main process's value, in every process."""
        meet()
        return value if self.size == 1 else broadcast_object_list([value])[0]

    def by_main(self, action: Callable[[], Value]) -> Value:
        """Run ``action`` in the main process alone and broadcast its result.

        A CagsrError that it raises is raised in all processes.
        """
        value, error = None, None
        if self.rank == 0:
            try:
                value = action()
            except CagsrError as raised:
                error = raised
        value, error = self.from_main((value, error))
        if error is not None:
            raise error
        return value  # type: ignore[return-value]

    def first_request(self, request: int) -> int:
        """The first non-zero request to stop of any process, or 0: all processes stop where one is asked to."""
        if self.size == 1:
            return request
        requests = self.gather(torch.tensor([request], device=self.device)).tolist()
        return next((number for number in requests if number), 0)
