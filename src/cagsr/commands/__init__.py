"""What each command does; `cagsr.cli` only reads arguments and calls these."""

import logging
import warnings

__all__ = ["silence_libraries"]


def silence_libraries() -> None:
    """Switch off what other libraries print into a command's output: progress bars, notes, deprecations.

    Their errors still show. Only commands call this: a program that imports cagsr keeps its own settings.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    # "Removed shared tensor": weights that are tied are saved once, which is what is wanted.
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    # PEFT reads the old name of a transformers property.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
