"""`cagsr report`: the page of one run or of several, written or served; also called when other commands end."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from cagsr.errors import StoppedError
from cagsr.io.quiet_libraries import warn
from cagsr.io.terminal import said, say
from cagsr.report import write_report
from cagsr.report.serve import Live, server

__all__ = ["report_at_end", "reported", "serve"]


@contextmanager
def reported(directory: Path, console: Console) -> Iterator[None]:
    """Context manager that writes the report of the run in ``directory`` when the block ends, also by a stop."""
    try:
        yield
    except StoppedError:
        report_at_end(directory, console)
        raise
    report_at_end(directory, console)


def report_at_end(directory: Path, console: Console) -> None:
    """Write ``report.html`` beside a command's results. A run is not lost for its report: a failure is only reported.

    The other processes of a run, whose console is quiet, write none.
    """
    if console.quiet:
        return
    try:
        path = write_report([directory])
    except Exception as error:
        warn(
            console,
            f"the run's records are whole, its report is not ({type(error).__name__}: {error}). "
            f"Try again: cagsr report {directory}",
        )
    else:
        say(console, said([f"report: {path}"]))


def serve(directories: Sequence[Path], port: int, console: Console) -> None:
    """Serve the page on the loopback address until Ctrl-C. Raises InputError for a wrong run or a taken port."""
    with server(Live(directories), port) as serving:
        address = f"http://127.0.0.1:{serving.server_port}/"
        say(console, f"report: {address} (this machine only; Ctrl-C ends it)")
        try:
            serving.serve_forever()
        except KeyboardInterrupt:
            console.print("stopped")
