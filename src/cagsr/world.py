"""The processes of a run: what must be known of all of them to do the same as one would."""

from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

__all__ = ["World"]

Value = TypeVar("Value")


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

    def from_main(self, value: Value) -> Value:
        """The main process's value, in every process."""
        return value if self.size == 1 else broadcast_object_list([value])[0]

    def first_request(self, request: int) -> int:
        """The first number of any process that is not 0, or 0: what one is asked, all are asked."""
        if self.size == 1:
            return request
        requests = self.gather(torch.tensor([request], device=self.device)).tolist()
        return next((number for number in requests if number), 0)
