"""What two processes, or several, find together."""

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
    return found_by(2, function, *arguments)


def found_by(count: int, function: Callable[..., dict[str, Any]], *arguments: object) -> dict[str, Any]:
    """`found_by_two` of any number."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "found.pt")
        forked.wait_for_both(
            forked.start_several(count, partial(_one, count, function, arguments, path), Path(place))
        )
        return torch.load(path, weights_only=True)


def _one(
    count: int, function: Callable[..., dict[str, Any]], arguments: tuple[object, ...], path: Path
) -> None:
    warnings.simplefilter("error")
    # As in pyproject.toml: PEFT uses an old name.
    warnings.filterwarnings("ignore", r"`\w*gradient_checkpointing\w*` is deprecated", FutureWarning)
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == count
    found = function(accelerator, *arguments)
    if accelerator.is_main_process:
        torch.save(found, path)
    accelerator.end_training()
