"""The command line, typed in this process: what it ended with, and what it said."""

import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import pytest
from accelerate.state import AcceleratorState

from cagsr.cli import main as cli

__all__ = ["Outcome", "settle", "typed", "typed_once"]


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


def settle(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory and the variables that commands are typed in: no hub, no colour, 80 columns."""
    monkeypatch.chdir(directory)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


def typed(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Outcome:
    """``cagsr ARGUMENTS`` in the working directory."""
    capsys.readouterr()
    code = _ended(arguments, monkeypatch)
    found = capsys.readouterr()
    return Outcome(code, found.out, found.err)


def typed_once(directory: Path, arguments: list[str]) -> Outcome:
    """``cagsr ARGUMENTS`` in ``directory``, for a fixture that many tests share."""
    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as monkeypatch, redirect_stdout(out), redirect_stderr(err):
        settle(directory, monkeypatch)
        code = _ended(arguments, monkeypatch)
    AcceleratorState._reset_state(reset_partial_state=True)
    return Outcome(code, out.getvalue(), err.getvalue())


def _ended(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    # Accelerate keeps the precision of the first Accelerator of a process; every command starts a new one.
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(sys, "argv", ["cagsr", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code or 0
