"""Casts of weights under autocast, which are kept from one pass to the next."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["casts_kept"]


@contextmanager
def casts_kept(model: nn.Module) -> Iterator[None]:
    """Context manager for passes without gradient, in which autocast casts each weight once and not in every pass.

    It keeps the casts of weights that want a gradient, for as long as its own context lasts. Those that an adapter
    leaves frozen were cast anew for every token that is written, which takes longer than to multiply by them.
    Without autocast nothing is done.
    """
    frozen = []
    if torch.is_autocast_enabled(next(model.parameters()).device.type):
        frozen = [
            weight for weight in model.parameters() if not weight.requires_grad and weight.is_floating_point()
        ]
    for weight in frozen:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
