"""The command line, typed in this process: what it ended with, and what it said."""

import sys
from typing import NamedTuple

import pytest
from accelerate.state import AcceleratorState

from cagsr.cli import main as cli

__all__ = ["Outcome", "typed"]


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


def typed(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Outcome:
    """``cagsr ARGUMENTS`` in the working directory."""
    # Accelerate keeps the precision of the first Accelerator of a process; every command starts a new one.
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(sys, "argv", ["cagsr", *arguments])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main()
    found = capsys.readouterr()
    return Outcome(ended.value.code or 0, found.out, found.err)
