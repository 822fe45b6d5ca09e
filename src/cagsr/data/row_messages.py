"""Console messages about the rows of a data set, for every command that reads one."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from cagsr.io.quiet_libraries import warn
from cagsr.io.terminal import say

if TYPE_CHECKING:
    from cagsr.data.data_report import DataReport
    from cagsr.data.prompts import Reads

__all__ = ["say_cut", "say_few", "say_not_measured", "say_rows"]

# The bootstrap's intervals are too narrow over few things; from here on that hardly shows.
MANY_PROMPTS = 20


def say_rows(console: Console, what: str, report: "DataReport") -> None:
    """Print a line of counts, what was recognised in order to read the rows, and a warning for each row that was
    dropped as invalid (the first ten) and for duplicates.
    """
    say(console, f"{what}: {report}")
    for note in report.notes:
        say(console, f"{what}: {note}")
    for line in report.warnings():
        warn(console, line)


def say_few(console: Console, prompts: int) -> None:
    """Warn where there are too few evaluated prompts for reliable intervals."""
    if prompts < MANY_PROMPTS:
        warn(
            console,
            f"intervals over {prompts} prompts are too narrow, and their p-values too small; evaluate on more. A mean "
            f"over them is uncertain by ±{1.96 / prompts**0.5:.1f} standard deviations at least",
        )


def say_not_measured(console: Console, measured_by: Mapping[str, Any]) -> None:
    """Warn of each metric that was asked for and could not be measured (``Scoreboard.describe``)."""
    for metric, reason in measured_by.get("not_measured", {}).items():
        warn(console, f"{metric} is not measured: {reason}")


def say_cut(console: Console, policy: "Reads", what: str, texts: Sequence[str], limit: int, key: str) -> None:
    """Warn of texts with more tokens than the ``limit`` that ``key`` of the config sets: they are truncated there."""
    longer = sum(len(row) > limit for row in policy.encode(list(texts)))
    if longer:
        warn(
            console,
            f"{longer} of {len(texts)} {what} are longer than {key} ({limit}) and are cut there; raise it",
        )
