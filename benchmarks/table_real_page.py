"""The section of docs/results.md on a real assistant, from docs/real.json; nothing while there is no record."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.record import table
from benchmarks.results import Record
from benchmarks.table_real_prompts import LAYOUTS

__all__ = ["every_task"]

# What a table shows of the record's columns; docs/real.json has the intervals of all.
ASKED = ("system", "seed", "asked")
SLOTS = (
    "slot errors",
    "slot errors to no-rl",
    "slot errors to no-rl, asked alike",
    "said",
    "invented",
    "invented to no-rl",
    "wrong values",
    "foreign names",
    "foreign names to no-rl",
    "said twice",
    "tokens",
)
ELSE = (
    "relevance",
    "ROUGE-L",
    "perplexity elsewhere",
    "perplexity elsewhere to no-rl, %",
    "minutes",
    "measured",
)
HOW = (
    "*asked*: plainly; in better words; after two worked examples; or with the facts in another layout. "
    "*foreign names*: names and numbers that the plain prompt lacks, counted per answer. *wrong values*: "
    "values said instead of the prompt's own, a part of what is invented. *asked alike*: the difference to the base "
    "asked in that way. **Bold**: the 95 % interval of the paired difference, a bootstrap over prompts (perplexity: "
    "over pieces of text), excludes 0; seeds are rows of their own, and nothing is corrected for the number of rows."
)


def every_task(record: Record) -> str:
    """The section: for each task its tables, and how far layouts are apart where several were asked; "" for none."""
    if not record:
        return ""
    parts = ["## A real assistant", HOW]
    for task, part in record.items():
        parts += [
            f"### {task}: {len(part['rows'])} rows",
            f"{part['about']} {part['machine']}; `{part['command']}`.",
            *(_shown(part, columns) for columns in (SLOTS, ELSE)),
        ]
        if spread := _layouts(part):
            parts += ["Slot errors by layout, and from the best to the worst:", spread]
    return "\n\n".join(filter(None, parts))


def _shown(part: Mapping[str, Any], columns: Sequence[str]) -> str:
    """A table of some columns, those without a single cell left out; "" where none is left."""
    rows = _named(part)
    kept = [name for name in columns if any(row.get(name) for row in rows)]
    named = [*ASKED, *kept]
    return table(named, [[row[name] for name in named] for row in rows]) if kept else ""


def _layouts(part: Mapping[str, Any]) -> str:
    found: dict[tuple[str, str], dict[str, str]] = {}
    for row in _named(part):
        if row["asked"] in LAYOUTS:
            found.setdefault((row["system"], row["seed"]), {})[row["asked"]] = row["slot errors"]
    rows = []
    for (system, seed), errors in found.items():
        if len(errors) > 1:
            values = [float(cell) for cell in errors.values()]
            spread = f"{max(values) - min(values):.3f}".removeprefix("0")
            rows.append([system, seed, *(errors.get(layout, "") for layout in LAYOUTS), spread])
    columns = ["one line" if layout == "plain" else layout for layout in LAYOUTS]
    return table(["system", "seed", *columns, "apart"], rows) if rows else ""


def _named(part: Mapping[str, Any]) -> list[dict[str, str]]:
    return [dict(zip(part["columns"], row, strict=True)) for row in part["rows"]]
