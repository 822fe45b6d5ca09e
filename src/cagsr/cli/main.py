"""The command line: all commands in one parser, and errors turned into exit codes."""

import re
import signal
import sys
from shutil import get_terminal_size
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import cagsr
from cagsr.cli import measuring_commands, reading_commands, training_commands
from cagsr.distributed.launcher import refuse_several
from cagsr.errors import CagsrError, InputError, MemoryRanOutError, StoppedError, ran_out_of_memory
from cagsr.io.shutdown import Terminated, start_clock, terminate
from cagsr.io.streams import settle_streams
from cagsr.io.terminal import wrapped

__all__ = ["app", "main"]

# Settings as the options of other programs spell them.
DASHED = re.compile(r"--set(=|$)|--\w+\.\w+")
# Commands that do not share their work among processes.
ALONE = ("calibrate", "compare", "demo", "export", "plan", "rate", "report", "score")


class Commands(TyperGroup):
    """Command group that reports a run stopped at Ctrl-C, where Typer is silent, and keeps ALONE to one process."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if name in ALONE:
            refuse_several(name)
        for given in rest:
            dashed = DASHED.match(given)
            if dashed:
                raise InputError(
                    f"{given}: keys take no dashes and no --set; write section.key=value, train.steps=20"
                )
        return name, command, rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("\nstopped by Ctrl-C; a run goes on with --resume", file=sys.stderr)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Post-train language models without labels: the reward is the model's own attention to the prompt.",
    epilog="Exit codes: 0 done, 2 bad input, 3 numbers went bad, 4 storage, 5 probe --fail-on, 69 no server, "
    "71 memory, 75 resumable, 130 Ctrl-C.",
)
for commands in (training_commands, measuring_commands, reading_commands):  # in the order of --help
    app.add_typer(commands.app)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"cagsr {cagsr.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _print_error(message: str) -> None:
    """Print an error: one line for a program; broken between words on a terminal."""
    line = f"error: {message}"
    print(wrapped(line, get_terminal_size().columns) if sys.stderr.isatty() else line, file=sys.stderr)


def main() -> None:
    """Entry point: run the command line and exit with the exit code of `cagsr.errors`."""
    # Signals and checkers of the user's own are named by dotted path; they lie where the command is run.
    sys.path.insert(0, "")
    start_clock()
    settle_streams()
    if signal.getsignal(signal.SIGTERM) != signal.SIG_IGN:
        signal.signal(signal.SIGTERM, terminate)
    try:
        app(prog_name="cagsr")
    except Terminated:
        _print_error("stopped by SIGTERM; a run goes on with --resume")
        sys.exit(StoppedError.exit_code)
    except CagsrError as error:
        _print_error(str(error))
        sys.exit(error.exit_code)
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        _print_error("out of memory. Lower train.micro_batch or sampling.max_new_tokens.")
        sys.exit(MemoryRanOutError.exit_code)
