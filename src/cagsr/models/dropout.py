"""Removal of dropout from a loaded model, and a check for other randomness in training mode."""

from typing import Any, cast

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import PretrainedConfig, PreTrainedModel

from cagsr.attention.inspection import name_of, token_ids
from cagsr.errors import UnsupportedModelError

__all__ = ["refuse_randomness", "without_randomness"]


def _is_rate(name: str, value: Any) -> bool:
    return isinstance(value, float) and ("drop" in name or "jitter" in name)


def without_randomness(model: nn.Module) -> dict[str, float]:
    """Set every dropout rate of a loaded model to 0, in its modules and config; returns the rates of the config.

    Rates of inner configs (``encoder``, ``text_config``) stay: they were read when the modules were made.
    """
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        for name in [name for name, value in vars(module).items() if _is_rate(name, value)]:
            setattr(module, name, 0.0)
    config = cast(PretrainedConfig, model.config)
    rates = {name: value for name, value in config.to_dict().items() if _is_rate(name, value) and value}
    for name in rates:
        setattr(config, name, 0.0)
    return rates


def refuse_randomness(model: nn.Module, base: PreTrainedModel) -> None:
    """Raise UnsupportedModelError where two training-mode passes of ``model`` differ; ``base`` is the model inside it.

    Gradient checkpointing makes its passes in training mode.
    """
    ids = token_ids(base, 12)[None]
    inputs = {"input_ids": ids, **({"decoder_input_ids": ids} if base.config.is_encoder_decoder else {})}
    training = [module for module in model.modules() if module.training]
    devices = [ids.device] if ids.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        model.train()
        try:
            first, second = (model(**inputs, use_cache=False).logits for _ in range(2))
        finally:
            model.eval()
            for module in training:
                module.training = True
    # Sums of a GPU may differ in their last bits from pass to pass.
    if (first - second).abs().max() > 1e-4 * first.abs().max():
        raise UnsupportedModelError(
            f"model: {name_of(base)} computes something random in training mode that no dropout rate names, so an "
            "update would train another network than the one that was sampled from. Choose another model."
        )
