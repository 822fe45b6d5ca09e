"""Lock file of a run directory: one process writes at a time, and another is told which one, and since when."""

import fcntl
import json
import os
import platform
import time
from datetime import UTC, datetime
from pathlib import Path

from cagsr.errors import InputError, StorageError
from cagsr.io.atomic_write import storing

__all__ = ["LOCK", "Lock"]

LOCK = "run.lock"
PATIENCE = 100
"""Number of reads, 0.01 s apart, until a process that has just taken the lock has written its name."""


class Lock:
    """An exclusive lock on a directory, held from `take` to `release` or until the process ends, when the kernel lets
    go.

    The lock file stays. It says who holds the lock, or who held it last. Differs: a file that is merely there would
    outlive a ``kill -9`` and lock everybody out.
    """

    def __init__(self, descriptor: int):
        self._descriptor: int | None = descriptor

    @classmethod
    def take(cls, directory: Path) -> "Lock":
        """Take the lock. Raises InputError naming the holder when another process has it, and StorageError."""
        path = directory / LOCK
        with storing(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise InputError(
                f"{directory} is being written by {holder}. Wait until that has ended, or choose another directory."
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise StorageError(
                f"{directory}: this file system cannot lock files ({error.strerror}); choose a directory on another"
            ) from error
        since = datetime.now(UTC).isoformat(timespec="seconds")
        about = {"process": os.getpid(), "machine": platform.node(), "since": since}
        with storing(path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(about).encode(), 0)
        return cls(descriptor)

    def release(self) -> None:
        """Release the lock; the lock file stays."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _holder(descriptor: int) -> str:
    for _ in range(PATIENCE):
        try:
            about = json.loads(os.pread(descriptor, 4096, 0))
            return f"process {about['process']} on {about['machine']} since {about['since']}"
        except (ValueError, KeyError, TypeError):  # taken, but its holder has not yet written who it is
            time.sleep(0.01)
    return "a run that is starting just now"
