"""Warnings and out-of-memory errors of commands, and the silencing of other libraries' progress bars and notes."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from cagsr.errors import MemoryRanOutError, ran_out_of_memory
from cagsr.io.terminal import say

__all__ = ["memory_named", "silence_libraries", "warn"]


def silence_libraries() -> None:
    """Switch off what other libraries print into a command's output: progress bars, notes, deprecations.

    Their errors still show. Only commands call this: a program that imports cagsr keeps its own settings.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    # "Removed shared tensor": weights that are tied are saved once, which is what is wanted.
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    # What a model cannot do without data is said by `cagsr plan`, without torch's own trace of it.
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)
    # PEFT reads the old name of a transformers property.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


def warn(console: Console, message: str) -> None:
    """Print a warning: coloured where there is colour, and labelled as a warning where there is none."""
    say(console, f"warning: {message}", style="yellow")


@contextmanager
def memory_named(keys: str) -> Iterator[None]:
    """Context manager that turns an out-of-memory error into one that names the config ``keys`` to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        why = (str(error).splitlines() or ["no more can be had"])[0]
        raise MemoryRanOutError(
            f"out of memory: {why}. Checkpoints are untouched. Lower {keys}, or set train.gradient_checkpointing=true, "
            "and go on with --resume --accept-changes."
        ) from error
