"""Columns that a data set lacks, and which of those it has may be meant."""

from collections.abc import Sequence

from cagsr.data.file_formats import Row
from cagsr.data.layouts import left_out
from cagsr.errors import InputError, near

__all__ = ["demand_column", "suggest_reference"]

# What data sets call a prompt, the likeliest first: only to suggest a column when none was found.
PROMPT_NAMES = ("prompt", "instruction", "question", "query", "input", "text", "mr", "article", "document")
# What they call a reference, for the same purpose.
REFERENCE_NAMES = ("reference", "completion", "answer", "output", "response", "target", "summary", "label")
LOOKED_AT = 10


def suggest_reference(rows: Sequence[Row]) -> None:
    """Raise InputError where no column is read as the reference, and one seems to be it."""
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    meant = next((name for name in REFERENCE_NAMES if name in names), None)
    if meant not in ("reference", "completion", None):
        raise InputError(
            f"no 'reference' column; found {', '.join(map(repr, names))}. Did you mean data.reference_column: {meant}?"
        )


def demand_column(rows: Sequence[Row], kind: str, column: str) -> None:
    """Raise InputError where no row has ``column``, with the one that data.KIND_column may have to name."""
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    if column in names:
        return
    found = f"no {column!r} column; found {', '.join(map(repr, names))}."
    # A sheet without a header has its first row of data as the names of its columns.
    if any(name.isdigit() or len(name.split()) > 3 for name in names):
        raise InputError(f"{found} Is the header line missing? Name the columns above the first row.")
    texts: dict[str, int] = {}
    for row in rows[:LOOKED_AT]:
        for name, value in row.values.items():
            if isinstance(value, str):
                texts[name] = texts.get(name, 0) + len(value)
    talks = [
        name
        for row in rows[:1]
        for name, value in row.values.items()
        if kind == "prompt" and isinstance(value, list) and value and isinstance(value[0], dict)
    ]
    known = {"prompt": PROMPT_NAMES, "reference": REFERENCE_NAMES}.get(kind, ())
    longest = sorted(texts, key=lambda name: -texts[name]) if kind == "prompt" else []
    likely = [*talks, *(name for name in known if name in texts), *longest]
    meant = near(column, names) or next(iter(likely), None)
    if meant is not None:
        found += f" Did you mean data.{kind}_column: {meant}?"
        if kind == "prompt" and (context := left_out(meant, names)):
            found += f" It leaves out {context!r}; to have both in the prompt, join them in one column."
    raise InputError(found)
