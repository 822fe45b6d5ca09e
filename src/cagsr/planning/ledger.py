"""`Ledger`: bytes of all tensors that are alive while a pass runs on tensors without data, by part, and the most at once."""

import weakref
from collections import Counter
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["ACTIVATIONS", "CASTS", "LOGITS", "Ledger"]

ACTIVATIONS, LOGITS, CASTS = "activations", "logits", "casts of weights"


class Ledger(TorchDispatchMode):
    """Context manager that follows every storage from the operation that makes it until nobody holds it any more.

    What has the vocabulary's width is logits, a parameter in another type is a cast, and all else activations until it
    is `moved` to another part. Tensors that were there before (``own``) are not counted.
    """

    def __init__(self, own: Iterable[Tensor], vocabulary: int):
        super().__init__()
        self._own, self._vocabulary = {_key(tensor) for tensor in own}, vocabulary
        self._alive: dict[int, tuple[str, int, Any]] = {}
        self.held: Counter[str] = Counter()
        self._moments: list[Counter[str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor) and _key(tensor) not in self._own | self._alive.keys():
                cast = func is torch.ops.aten._to_copy.default and isinstance(args[0], nn.Parameter)
                width = tensor.shape[-1] if tensor.dim() else 0
                self._add(tensor, CASTS if cast else LOGITS if width == self._vocabulary else ACTIVATIONS)
        return found

    def moved(self, tensors: Iterable[Tensor], part: str) -> None:
        """Count these tensors as another part from now on."""
        for tensor in tensors:
            self._forget(_key(tensor))
            self._add(tensor, part)

    def most(self, shares: Mapping[str, float] = MappingProxyType({})) -> dict[str, int]:
        """What was held, by part, at the moment when it was most; of some parts only a share is held."""
        moments = [
            {part: round(size * shares.get(part, 1)) for part, size in held.items()} for held in self._moments
        ]
        return max(moments, key=lambda held: sum(held.values()))

    def _add(self, tensor: Tensor, part: str) -> None:
        storage, key = tensor.untyped_storage(), _key(tensor)
        self._alive[key] = (part, storage.nbytes(), weakref.ref(storage, lambda _: self._forget(key)))
        self.held[part] += storage.nbytes()
        self._moments.append(self.held.copy())

    def _forget(self, key: int) -> None:
        part, size, _ = self._alive.pop(key)
        self.held[part] -= size


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
