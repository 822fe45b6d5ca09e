"""What was measured, kept: docs/performance.json, and docs/performance.md written from it.

A part that is measured again replaces what the record has of it; the page is always that of the whole record.
"""

import json
import os
import platform
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.protocol import Bound, Spread, Taken

__all__ = ["Part", "Plan", "Table", "keep", "page", "table"]

RECORD, PAGE = "performance.json", "performance.md"
WIDTH = 120
PACKAGES = ("cagsr", "torch", "transformers", "accelerate", "trl")


@dataclass(frozen=True)
class Plan:
    """How often each way has its turn; ``quick``: at sizes that only show that it works."""

    rounds: int
    quick: bool


@dataclass(frozen=True)
class Table:
    caption: str
    columns: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Part:
    """One subject: what it says, its tables, what was promised, and every turn that was taken (seconds)."""

    title: str
    about: str
    tables: list[Table]
    bounds: list[Bound] = field(default_factory=list)
    turns: Mapping[str, list[Taken]] = field(default_factory=dict)


def keep(directory: Path, name: str, part: Part, plan: Plan, order: list[str]) -> None:
    """Merge a part into the record of ``directory`` and write its page; ``order`` is that of the sections."""
    path = directory / RECORD
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    record[name] = _as_json(part) | {"plan": asdict(plan), "machine": _machine()}
    record = {key: record[key] for key in order if key in record}
    directory.mkdir(parents=True, exist_ok=True)
    # A line for each part, so that one measured again is one line changed.
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in record.items())
    path.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    (directory / PAGE).write_text(page(record), encoding="utf-8")


def _as_json(part: Part) -> dict[str, Any]:
    turns = {
        way: {"cpu": [round(one.cpu, 6) for one in taken], "wall": [round(one.wall, 6) for one in taken]}
        for way, taken in part.turns.items()
    }
    return asdict(part) | {"turns": turns}


def _machine() -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "versions": {name: version(name) for name in PACKAGES},
    }


def processor() -> str:
    """Linux alone knows its name; elsewhere the architecture must do."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text(encoding="utf-8").splitlines() if known.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(record: Mapping[str, Any]) -> str:
    """The Markdown of a record."""
    sections = "\n".join(_section(part) for part in record.values())
    parts = ", ".join(f"`{name}`" for name in record)
    about = f"""`make bench` measures all of this and writes this page from `performance.json`, where every turn is
kept;
`make bench ARGS='--only NAME'` measures one part again ({parts}).

Ways take turns in one process, in an order drawn anew for each round; a ratio is taken within its round. The tables
give the median and, in brackets, the range. Seconds are those that the process spent computing on one thread, so
that waiting for a busy machine does not count, unless a table says "wall". Memory is the highest sum that PyTorch's
allocator held, from its profiler, beyond what it held before. All is float32 on the CPU."""
    return f"""# What things cost

{_wrapped(about)}

## What was promised

{_promises(record)}

{sections}"""


def _promises(record: Mapping[str, Any]) -> str:
    rows = []
    for name, part in record.items():
        for given in part["bounds"]:
            bound = Bound(**{**given, "measured": Spread(**given["measured"])})
            limit = f"at {bound.at} {bound.limit:g}{bound.unit}"
            measured = f"{bound.measured.text()}{bound.unit}"
            verdict = bound.verdict + (" (quick)" if part["plan"]["quick"] else "")
            rows.append([bound.what, limit, measured, verdict, name])
    return table(["What", "Bound", "Measured", "", "Part"], rows)


def _section(part: Mapping[str, Any]) -> str:
    tables = "\n\n".join(
        (f"{one['caption']}\n\n" if one["caption"] else "") + table(one["columns"], one["rows"])
        for one in part["tables"]
    )
    return f"## {part['title']}\n\n{_wrapped(part['about'])}\n\n{tables}\n\n{_wrapped(_when(part))}\n"


def _wrapped(text: str) -> str:
    """Paragraphs and list items, each filled anew: what was put into them has lengths of its own."""
    filled = []
    for paragraph in text.split("\n\n"):
        items = (" ".join(item.split()) for item in ("\n" + paragraph).split("\n- "))
        first, *listed = items
        lines = [textwrap.fill(first, WIDTH)] * bool(first)
        lines += [textwrap.fill(f"- {item}", WIDTH, subsequent_indent="  ") for item in listed]
        filled.append("\n".join(lines))
    return "\n\n".join(filled)


def _when(part: Mapping[str, Any]) -> str:
    machine, plan = part["machine"], part["plan"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    quick = (
        " **Quick: small sizes and few rounds, which show that it works and no more.**"
        if plan["quick"]
        else ""
    )
    return (
        f"Measured {machine['date']}, {plan['rounds']} rounds, {machine['cores']} cores ({machine['processor']}), "
        f"{machine['threads']} thread(s) used, load {machine['load']} at the end; {versions}.{quick}"
    )
