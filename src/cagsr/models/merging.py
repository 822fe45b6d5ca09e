"""Weights of a model with its LoRA adapter added to a copy of what it adapts, one at a time."""

from typing import Any

from torch import Tensor, nn

__all__ = ["adapters", "merged_weight"]


def adapters(model: nn.Module) -> dict[int, Any]:
    """The modules of a model that carry an adapter, by the ``id`` of the weight that each adapts."""
    return {
        id(module.get_base_layer().weight): module  # type: ignore[operator]
        for module in model.modules()
        if hasattr(module, "get_delta_weight")
    }


def merged_weight(weight: Tensor, adapter: Any) -> Tensor:
    """A weight with what ``adapter`` adds to it, in the weight's own type; the weight itself where that is None.

    Merged in place and taken out again it would be a rounding away from what it was, at every step.
    """
    if adapter is not None:
        for name in adapter.active_adapters:
            weight = (weight + adapter.get_delta_weight(name)).to(weight.dtype)
    return weight
