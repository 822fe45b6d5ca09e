"""`Ledger`: bytes of all tensors that are alive while a pass runs on tensors without data, by part."""

import weakref
from collections import Counter
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["ACTIVATIONS", "CASTS", "LOGITS", "Ledger"]

ACTIVATIONS, LOGITS, CASTS = "activations", "logits", "casts of weights"


class Ledger(TorchDispatchMode):
    """Context manager that follows every storage from the operation that makes it until nobody holds it any more.

    What has the ``vocabulary``'s width is logits, a weight in another type a cast, and all else activations until it is
    `moved` to another part. ``weights`` say how often each is there (`passes.Passes.weights`); nothing else that was
    there before is asked for.

    ``times`` is how many tensors a new one stands for. While it is more than one nothing is taken for the most: what
    lasts of such tensors is there so often, but what passes is not.
    """

    def __init__(self, weights: Mapping[Tensor, int], buffers: Iterable[Tensor], vocabulary: int):
        super().__init__()
        self._weights, self._vocabulary = weights, vocabulary
        self._own = {_key(tensor) for tensor in (*weights, *buffers)}
        self._alive: dict[int, tuple[str, int, Any]] = {}
        self._moments: list[Counter[str]] = []
        self.held: Counter[str] = Counter()
        self.times = 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if not isinstance(tensor, Tensor) or (key := _key(tensor)) in self._own or key in self._alive:
                continue
            if func is torch.ops.aten._to_copy.default and args[0] in self._weights:
                # Autocast itself keeps the casts of weights that want a gradient, and no others.
                lasts = args[0].requires_grad
                self._add(tensor, CASTS, self._weights[args[0]] if lasts else self.times)
            else:
                is_logits = tensor.dim() and tensor.shape[-1] == self._vocabulary
                self._add(tensor, LOGITS if is_logits else ACTIVATIONS, self.times)
        return found

    def moved(self, tensors: Iterable[Tensor], part: str, times: int = 1) -> None:
        """Count these tensors, so often each, as another part from now on."""
        for tensor in tensors:
            self._forget(_key(tensor))
            self._add(tensor, part, times)

    def most(self, shares: Mapping[str, float] = MappingProxyType({})) -> dict[str, int]:
        """Bytes of each part at the moment when all together were most; of some parts only a share is held."""
        moments = (
            {part: round(size * shares.get(part, 1)) for part, size in held.items()}
            for held in reversed(self._moments)
        )
        return max(moments, key=lambda held: sum(held.values()))

    def _add(self, tensor: Tensor, part: str, times: int) -> None:
        storage, key = tensor.untyped_storage(), _key(tensor)
        size = times * storage.nbytes()
        self._alive[key] = (part, size, weakref.ref(storage, lambda _: self._forget(key)))
        self.held[part] += size
        if self.times == 1:
            self._moments.append(self.held.copy())

    def _forget(self, key: int) -> None:
        part, size, _ = self._alive.pop(key)
        self.held[part] -= size


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
