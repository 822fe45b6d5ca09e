"""Number of processes that a launcher (torchrun, accelerate launch, mpirun) started, known before torch is imported."""

import os

from cagsr.errors import InputError

__all__ = ["launched", "refuse_several", "refuse_unseen"]

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


def refuse_unseen(seen: int) -> None:
    """Raise InputError where several processes were launched and Accelerate sees one: they would not work together."""
    if seen == 1 and launched() > 1:
        raise InputError(
            f"{launched()} processes were launched, and Accelerate sees each of them alone, as it does where there "
            "is no GPU. Set ACCELERATE_USE_CPU=1 to run them together on CPUs, or start one process without a launcher."
        )
