"""The processes of a run: what must be known of all of them to do the same as one would."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from cagsr.errors import CagsrError, InputError

__all__ = ["World", "accelerated"]

Value = TypeVar("Value")


def accelerated(**settings: Any) -> Accelerator:
    """Accelerate with these settings and those of its launcher. Raises InputError for what it cannot make sense of."""
    try:
        return Accelerator(**settings)
    except ValueError as error:
        raise InputError(
            f"accelerate launch: Accelerate refuses its config: {error}. Correct it there, or begin with one of "
            "examples/accelerate."
        ) from error


class World:
    """Every process holds the same number of groups, in rank order; with one process all of this is identity."""

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        self.size, self.rank = accelerator.num_processes, accelerator.process_index
        self.device = accelerator.device

    def gather(self, local_N: Tensor) -> Tensor:
        """[N ...] of this process -> [size * N ...] of all, in rank order."""
        gathered = self._accelerator.gather(local_N.contiguous())
        assert isinstance(gathered, Tensor)
        return gathered

    def mine(self, global_N: Tensor) -> Tensor:
        """The inverse of `gather`."""
        return global_N.chunk(self.size)[self.rank]

    def total(self, local: Tensor) -> Tensor:
        """Elementwise sum over processes. May lie on the CPU, where float64 exists whatever the device."""
        if self.size == 1:
            return local
        reduced = self._accelerator.reduce(local.to(self.device), reduction="sum")
        assert isinstance(reduced, Tensor)
        return reduced.to(local.device)

    def share(self, items: list) -> list:
        """This process's consecutive part of a list whose length the number of processes divides."""
        each = len(items) // self.size
        return items[self.rank * each : (self.rank + 1) * each]

    def joined(self, items: list) -> list:
        """The lists of all processes one after another, in rank order; the inverse of `share`."""
        return items if self.size == 1 else gather_object(items)

    def from_main(self, value: Value) -> Value:
        """The main process's value, in every process."""
        return value if self.size == 1 else broadcast_object_list([value])[0]

    def by_main(self, action: Callable[[], Value]) -> Value:
        """What ``action``, done by the main process alone, gives; what it raises for a user, all processes raise."""
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
        """The first number of any process that is not 0, or 0: what one is asked, all are asked."""
        if self.size == 1:
            return request
        requests = self.gather(torch.tensor([request], device=self.device)).tolist()
        return next((number for number in requests if number), 0)
