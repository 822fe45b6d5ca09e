"""What became of the rows of a data set, said once by every command that reads one."""

from typing import TYPE_CHECKING

from rich.console import Console

from cagsr.prose import say

if TYPE_CHECKING:
    from cagsr.data import DataReport

__all__ = ["say_rows"]


def say_rows(console: Console, what: str, report: "DataReport") -> None:
    """A line of counts, and a warning for each row that was dropped as invalid (the first ten) and for duplicates."""
    say(console, f"{what}: {report}")
    for line in report.warnings():
        say(console, f"warning: {line}", style="yellow")
