"""What several commands share: options, the loading of a config, and the console of commands with ``--json``."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand

from cagsr.errors import InputError
from cagsr.io.places import expanded
from cagsr.io.quiet_libraries import silence_libraries
from cagsr.io.streams import print_result

__all__ = [
    "AcceptChanges",
    "Command",
    "ConfigFile",
    "Json",
    "MaxTime",
    "Overrides",
    "SkipInvalid",
    "console_for",
    "load",
    "print_json",
]


class Command(TyperCommand):
    """A command whose paths are expanded: a shell leaves ``--output=~/x`` as it is, and a program's list all."""

    def invoke(self, ctx: Any) -> Any:
        ctx.params = {name: _expanded(value) for name, value in ctx.params.items()}
        return super().invoke(ctx)


def _expanded(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_expanded(each) for each in value)
    return Path(expanded(value)) if isinstance(value, Path) else value


ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML file; `cagsr reference` lists every key.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Dotted keys that win over the file.")
]
SkipInvalid = Annotated[
    bool,
    typer.Option(
        "--skip-invalid", help="Drop rows that cannot be used, count and list them, instead of refusing."
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON on standard output, nothing else.")
]
AcceptChanges = Annotated[
    bool, typer.Option("--accept-changes", help="Resume although config, model, data or code changed.")
]
MaxTime = Annotated[
    str | None, typer.Option(help="Save and stop after so long, resumable: 90s, 45m, 2h, 1h30m.")
]


def _time_limit(text: str | None) -> list[str]:
    """The override of ``run.max_seconds`` for a time such as ``1h30m``."""
    if text is None:
        return []
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    seconds = (
        sum(int(part or 0) * unit for part, unit in zip(match.groups(), (3600, 60, 1), strict=True))
        if match
        else 0
    )
    if not seconds:
        raise InputError(f"--max-time: got {text!r}, expected hours, minutes, seconds: 2h, 45m, 1h30m, 90s")
    return [f"run.max_seconds={seconds}"]


def load(
    config: Path | None, overrides: list[str] | None, skip_invalid: bool, max_time: str | None = None
) -> Any:
    """The `Config` of a command's file, overrides and options; other libraries are silenced."""
    from cagsr.config import Config

    options = [*["data.skip_invalid=true"] * skip_invalid, *_time_limit(max_time)]
    loaded = Config.load(config, [*(overrides or []), *options])
    silence_libraries()  # after the config: a mistake in it is said at once
    return loaded


def console_for(as_json: bool) -> Console:
    """Console of a command: standard error where standard output belongs to a program (``--json``).

    What moves is for a person's terminal only: not for a file, whatever FORCE_COLOR says, nor for a build's log.
    """
    stream = sys.stderr if as_json else sys.stdout
    moves = stream.isatty() and not os.environ.get("CI")
    return Console(stderr=as_json, force_interactive=None if moves else False)


def print_json(value: Any, wanted: bool, console: Console | None = None) -> None:
    """Print ``value`` if it is ``wanted``: once, and not by the processes whose console is quiet."""
    if wanted and not (console and console.quiet):
        print_result(json.dumps(value, indent=2))
