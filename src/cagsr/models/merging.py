"""Weights of a model with its LoRA adapter added to a copy of what it adapts, one at a time."""

from typing import Any

from torch import Tensor, nn

from cagsr.errors import UnsupportedModelError

__all__ = ["adapters", "merged_weight"]


def adapters(model: nn.Module, key: str) -> dict[int, Any]:
    """The modules of a model that carry an adapter, by the ``id`` of the weight that each adapts.

    Raises UnsupportedModelError, which names the config ``key`` that asks for merging, for an adapter that is more than
    something added to a weight: DoRA scales the sum, others have a bias of their own.
    """
    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            part: Any = module
            if getattr(part, "lora_variant", None) or any(getattr(part, "lora_bias", {}).values()):
                raise UnsupportedModelError(
                    f"{key}: the adapter of {name} is of a kind that cannot be merged weight by weight (such as DoRA, "
                    f"or one with a bias). Leave {key} out, or use plain LoRA."
                )
            found[id(part.get_base_layer().weight)] = part
    return found


def merged_weight(weight: Tensor, adapter: Any) -> Tensor:
    """A weight with what ``adapter`` adds to it, in the weight's own type; the weight itself where that is None.

    Merged in place and taken out again it would be a rounding away from what it was, at every step.
    """
    if adapter is not None:
        for name in adapter.active_adapters:
            weight = (weight + adapter.get_delta_weight(name)).to(weight.dtype)
    return weight
