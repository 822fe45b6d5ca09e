"""Dropout rates of a loaded model and its configs: set to 0, and back to what they were when it is saved."""

from collections.abc import Iterator
from typing import Any, cast

from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["set_rates", "without_randomness"]


def without_randomness(model: nn.Module) -> dict[str, float]:
    """Set every dropout rate of a loaded model to 0, in its modules and configs; returns the rates of its config.

    Rates of inner configs are named by their path (``encoder.attention_probs_dropout_prob``). The network stays in
    evaluation mode as it is (`Policy.train`), but for the layers that gradient checkpointing recomputes: these read
    rates of their own.
    """
    rates = dict(_rates(cast(PretrainedConfig, model.config)))
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        for name in [name for name, value in vars(module).items() if _is_rate(name, value)]:
            setattr(module, name, 0.0)
        if isinstance(module, PreTrainedModel):  # halves of a composite may have a copy of the config
            set_rates(module.config, dict.fromkeys(dict(_rates(module.config)), 0.0))
    return rates


def set_rates(config: PretrainedConfig, rates: dict[str, float]) -> None:
    """Set the rates that `without_randomness` has named."""
    for path, rate in rates.items():
        *parts, name = path.split(".")
        inner: Any = config
        for part in parts:
            inner = getattr(inner, part)
        setattr(inner, name, rate)


def _rates(config: PretrainedConfig, path: str = "") -> Iterator[tuple[str, float]]:
    """Names and values of the rates above 0 in a config and the configs in it."""
    for name, value in vars(config).items():
        if isinstance(value, PretrainedConfig):
            yield from _rates(value, f"{path}{name}.")
        elif _is_rate(name, value) and value:
            yield f"{path}{name}", value


def _is_rate(name: str, value: Any) -> bool:
    # Not jitter: PhiMoE's router reads it in evaluation mode too, as the width of its mask.
    return isinstance(value, float) and "drop" in name
