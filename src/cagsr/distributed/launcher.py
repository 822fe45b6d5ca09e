"""Number of processes that a launcher (torchrun, accelerate launch, mpirun) started, known before torch is imported."""

import os

from cagsr.errors import InputError

__all__ = ["launched", "refuse_other_settings", "refuse_several", "refuse_unseen"]

# The environment variables of launchers; Accelerate reads the same.
SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


def launched() -> int:
    """The number of processes that were launched, at least 1."""
    given = [os.environ.get(name, "") for name in SIZES]
    return max((int(size) for size in given if size.isdecimal()), default=1) or 1


def refuse_several(command: str) -> None:
    """Raise InputError where a single-process command was launched as several: each would do the same work at once."""
    if launched() > 1:
        raise InputError(
            f"cagsr {command} runs as one process, and {launched()} were launched. Start it without torchrun or "
            f"accelerate launch: cagsr {command} ..."
        )


def refuse_other_settings(precision: str | None) -> None:
    """Raise InputError where a launcher's variables ask for numbers that another key decides, or that nothing gives.

    ``precision`` is train.mixed_precision; None for a command that has none. Accelerate would divide a gradient by the
    steps of accumulation, and forget a precision for the one that it is given.
    """
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if asked not in ("no", precision):
        mend = (
            f"Set train.mixed_precision to {asked}"
            if precision is not None
            else "This command computes in model.dtype: set that"
        )
        raise InputError(
            f"accelerate launch: mixed_precision is {asked} (ACCELERATE_MIXED_PRECISION), and the run's own "
            f"{precision or 'no'}. {mend}, and leave it out of the launcher, or set it to no there."
        )
    steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps not in ("1", "auto"):
        raise InputError(
            f"accelerate launch: gradient_accumulation_steps is {steps} (ACCELERATE_GRADIENT_ACCUMULATION_STEPS), and "
            "gradients add up over micro-batches here without it. Leave it out, and set train.micro_batch to what fits "
            "into memory."
        )
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if backend.lower() != "no":
        raise InputError(
            f"accelerate launch: dynamo_backend is {backend} (ACCELERATE_DYNAMO_BACKEND); attention cannot be read "
            "from a compiled model. Leave it out, or set it to no."
        )


def refuse_unseen(seen: int) -> None:
    """Raise InputError where several processes were launched and Accelerate sees one: they would not work together."""
    if seen == 1 and launched() > 1:
        raise InputError(
            f"{launched()} processes were launched, and Accelerate sees each of them alone, as it does where there "
            "is no GPU. Set ACCELERATE_USE_CPU=1 to run them together on CPUs, or start one process without a launcher."
        )
