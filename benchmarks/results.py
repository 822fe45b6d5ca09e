"""docs/results.json: what comparisons and probes found, as the tables that docs/results.md shows.

A part is a table with its provenance; cells are kept as they are shown, ``.051 [.043, .058]`` or ``**-.094 [-.105,
-.083]**``, rounded by `cagsr.evaluation.leaderboard`. A case that is measured again replaces its own part and its own
rows among the verdicts.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import table
from benchmarks.verdicts import matrix

__all__ = ["Record", "as_text", "every_case", "keep", "overview", "read", "read_table", "verdict_counts"]

Record = dict[str, dict[str, Any]]

VERDICTS = "verdicts"
CASES = re.compile(r"(.+)-(t5|llama)")
SHAPES = {"t5": "T5 shape", "llama": "Llama shape"}
HELPED = "helped"


def read(path: Path) -> Record:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def keep(
    path: Path, cases: Mapping[str, Mapping[str, Any]], verdicts: Mapping[str, Any], order: Sequence[str]
) -> None:
    """Merge cases (parts by name) and their verdicts (a part whose rows begin with the case's name) into the record."""
    record = read(path)
    kept = [row for row in record.get(VERDICTS, {"rows": []})["rows"] if row[0] not in cases]
    rows = sorted([*kept, *verdicts["rows"]], key=lambda row: order.index(row[0]))
    found = {**record, **cases, VERDICTS: {**verdicts, "rows": rows}}
    others = [name for name in record if name not in order and name != VERDICTS]
    names = [*others, VERDICTS, *(name for name in order if name in found)]
    path.write_text(as_text({name: found[name] for name in names}), encoding="utf-8")


def as_text(record: Record) -> str:
    """A line for every row, so that one measured again is one line changed."""
    parts = []
    for name, part in record.items():
        lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in part.items() if key != "rows"]
        rows = ",\n".join(f"    {json.dumps(row, ensure_ascii=False)}" for row in part["rows"])
        lines.append(f'  "rows": [\n{rows}\n  ]')
        parts.append(f"{json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def read_table(markdown: str) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a Markdown table, the inverse of `benchmarks.record.table`."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    heading, _, *rows = ([cell.strip() for cell in line[1:-1].split("|")] for line in lines)
    return heading, rows


def overview(record: Record) -> str:
    """The deciding metric's mean of every system on every case; bold where it differs from the case's first system."""
    cases = [name for name in record if CASES.fullmatch(name)]
    systems = dict.fromkeys(row[0] for name in cases for row in record[name]["rows"])
    rows = [[system, *(_mean(record[name], system) for name in cases)] for system in systems]
    return table(["system", *cases], rows)


def _mean(part: Mapping[str, Any], system: str) -> str:
    for name, deciding, to_base, *_ in part["rows"]:
        if name == system:
            mean = deciding.split(" ")[0]
            return f"**{mean}**" if to_base.startswith("**") else mean
    return ""


def every_case(record: Record) -> str:
    """A section for each case: what was measured, and its whole table."""
    return "\n\n".join(
        f"### {found[1]}, {SHAPES[found[2]]}\n\n{part['about']}\n\n{table(part['columns'], part['rows'])}"
        for name, part in record.items()
        if (found := CASES.fullmatch(name))
    )


def verdict_counts(record: Record) -> str:
    """The probe's verdicts against whether training then helped, counted."""
    return matrix((row[2], row[-1] == HELPED) for row in record[VERDICTS]["rows"])
