"""Terminal tables of the ratings: systems with intervals, agreement, and how careful each rater was."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cagsr.io.terminal import said, wrapped

__all__ = ["rating_table"]

TITLES = {
    "scores": "mean rating, 1 to 5, and 95 % interval",
    "pairs": "share of comparisons won, and 95 % interval",
}


def rating_table(summary: Mapping[str, Any], width: int = 80) -> Group:
    """Table of each mode that was rated: a row a system, a line on agreement, a line a rater; and the files written."""
    parts: list[RenderableType] = []
    for mode, systems in summary["systems"].items():
        if not summary["raters"][mode]:
            continue
        if systems:
            parts += [_systems(TITLES[mode], systems), Text("")]
        else:
            parts += [Text(wrapped(f"{TITLES[mode]}: none yet, nothing is rated in full", width))]
        lines = [_agreement(question, found) for question, found in summary["agreement"][mode].items()]
        begun = summary["begun"][mode]
        lines += [_rater(name, row, begun[name]) for name, row in summary["raters"][mode].items()]
        parts += [Text(wrapped(line, width)) for line in (*lines, "")]
    left_out = summary["pairs_left_out"]
    lines = [
        f"{summary['ratings']} ratings; {summary['pairs']} pairs, {left_out} left out (ties, empty texts)"
    ]
    lines += [said([f"written: {path}"]) for path in summary["files"]]
    return Group(*parts, *(Text(wrapped(line, width)) for line in lines))


def _systems(title: str, systems: Mapping[str, Any]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    questions = list(dict.fromkeys(name for found in systems.values() for name in found))
    table.add_column("")
    for question in questions:
        table.add_column(question, justify="right")
    table.add_column("prompts", justify="right")
    for name, found in systems.items():
        cells = [_interval(found[question]) if question in found else "" for question in questions]
        table.add_row(Text(name), *cells, str(max(each["prompts"] for each in found.values())))
    return table


def _interval(value: Mapping[str, Any]) -> str:
    ends = "one prompt" if value["low"] is None else f"[{value['low']:.2f}, {value['high']:.2f}]"
    return f"{value['mean']:.2f} {ends}"


def _agreement(question: str, found: Mapping[str, Any]) -> str:
    if found["alpha"] is None:
        why = "all the same value" if found["items"] else "no item has two ratings"
        return f"agreement on {question}: not defined ({why})"
    return f"agreement on {question}: Krippendorff's alpha {found['alpha']:.2f} over {found['items']} items"


def _rater(name: str, row: Mapping[str, int], begun: int) -> str:
    checks = [
        f"{row[f'{kind}_passed']} of {row[kind]} {what}"
        for kind, what in (
            ("foreign", "foreign responses seen through"),
            ("repeated", "items answered alike"),
        )
        if row[kind]
    ]
    checks += [f"{begun} begun, not counted"] if begun else []
    return f"{name}: {row['done']} of {row['items']} rated" + "".join(f"; {check}" for check in checks)
