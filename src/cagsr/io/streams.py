"""Standard streams of a command that is typed: a reader that goes away, a closed or a full one stop no work."""

import errno
import io
import os
import sys
from typing import IO, Any, cast

from cagsr.errors import StorageError

__all__ = ["demand_written", "print_result", "settle_streams"]


class Outlet(io.FileIO):
    """File of an output stream; what it cannot take any more is dropped, and ``failed`` says why."""

    failed: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failed = error
            return len(data)


def settle_streams() -> None:
    """Replace the standard streams by ones that every text fits into and that fail no work; closed ones take all.

    A character that the stream's encoding lacks is written as an escape. Only the command line calls this.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:  # closed; a file that is opened must not get its number and be written into
            if not _is_open(number):
                os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(os.devnull, "w" if number else "r"))  # noqa: SIM115
        # Not one that a test or a program put in its place.
        elif number and stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            stream.flush()
            outlet = Outlet(stream.fileno(), "w", closefd=False)
            at_once = stream.write_through  # python -u
            fresh = io.TextIOWrapper(
                cast(IO[bytes], outlet) if at_once else io.BufferedWriter(outlet),
                stream.encoding,
                "backslashreplace",
                line_buffering=stream.line_buffering,
                write_through=at_once,
            )
            setattr(sys, name, fresh)


def print_result(text: str) -> None:
    """Print what a command is asked for on standard output. Raises StorageError where a full disk does not take it."""
    print(text, flush=True)
    demand_written()


def demand_written() -> None:
    """Raise StorageError where a full disk did not take all of standard output."""
    sys.stdout.flush()
    buffer = getattr(sys.stdout, "buffer", None)
    outlet = getattr(buffer, "raw", buffer)
    if isinstance(outlet, Outlet) and outlet.failed is not None and outlet.failed.errno != errno.EPIPE:
        raise StorageError(
            f"standard output: {outlet.failed.strerror}; the result is not written whole. Free some space and "
            "write it again"
        )


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
