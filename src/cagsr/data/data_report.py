"""Report on the rows of a data set: how many are used, what became of the others, and which of them are refused."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from cagsr.errors import InputError

__all__ = ["DataReport"]

SHOWN = 10
MANY = 0.5
MEND = " Remove it or pass --skip-invalid."


@dataclass
class DataReport:
    """Counts of the rows by outcome: each is used, invalid, overlong or repeated; truncated and duplicates are among
    them.

    ``repeated`` are rows dropped because an earlier one has their prompt; ``duplicates`` equal an earlier one whole;
    ``notes`` say what was recognised in order to read them (`Row.notes`); ``remarks`` how the prompts are read, where
    that may not be what was meant.
    """

    rows: int = 0
    used: int = 0
    invalid: list[str] = field(default_factory=list)
    overlong: int = 0
    truncated: int = 0
    duplicates: int = 0
    repeated: int = 0
    notes: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{self.used} of {self.rows} rows used"]
        if self.invalid:
            parts.append(f"{len(self.invalid)} invalid dropped (first: {self.invalid[0].rstrip('.')})")
        if self.overlong:
            parts.append(f"{self.overlong} too long dropped")
        if self.truncated:
            parts.append(f"{self.truncated} truncated")
        if self.repeated:
            parts.append(f"{self.repeated} repeat the prompt of an earlier row, dropped")
        if self.duplicates:
            parts.append(f"{self.duplicates} of {self.rows} rows are duplicates")
        return "; ".join(parts) + "."

    def warnings(self) -> list[str]:
        """Warnings for the user, a line each: rows that were dropped as invalid, many duplicates, and the remarks."""
        lines = _shortened([f"dropped {line}" for line in self.invalid])
        if self.duplicates >= MANY * self.rows:
            lines.append(f"{self.duplicates} of {self.rows} rows are duplicates")
        return lines + self.remarks

    def check(self, skip_invalid: bool, overlong: Sequence[str] = ()) -> None:
        """Raise InputError with a line for each row that is refused, and where none is left."""
        invalid = [] if skip_invalid else [line + MEND for line in self.invalid]
        if invalid or overlong:
            raise InputError("\n".join(_shortened([*invalid, *overlong])))
        if not self.used:
            report = str(self)
            raise InputError(f"none of {self.rows} rows can be used: {report}")


def _shortened(lines: list[str]) -> list[str]:
    return lines[:SHOWN] + ([f"... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else [])
