"""What two processes find together."""

import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

import forked


def found_by_two(function: Callable[..., dict[str, Any]], *arguments: object) -> dict[str, Any]:
    """What ``function(accelerator, *arguments)`` returns in the first of two processes that both call it."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "found.pt")
        forked.wait_for_both(forked.start_two(partial(_one, function, arguments, path), Path(place)))
        return torch.load(path, weights_only=True)


def _one(function: Callable[..., dict[str, Any]], arguments: tuple[object, ...], path: Path) -> None:
    warnings.simplefilter("error")
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    found = function(accelerator, *arguments)
    if accelerator.is_main_process:
        torch.save(found, path)
    accelerator.end_training()
