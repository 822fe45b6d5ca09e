"""A comparison's table: for a terminal, for a document (Markdown), for a program (CSV)."""

import csv
import io
import textwrap
from collections.abc import Collection, Container, Mapping
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from cagsr.io.terminal import wrapped
from cagsr.metrics.titles import column_title

__all__ = ["compared_with", "csv_text", "leaderboard", "markdown", "primary"]

# The columns of a table; two are called as in the tables that are published.
COLUMNS = (
    "slot_error_rate",
    "coverage",
    "clean",
    "hallucination",
    "repetition",
    "ifeval_strict",
    "ifeval_loose",
    "ifeval_instructions",
    "exact_match",
    "rouge_l",
    "relevance",
    "followup_nll",
    "length",
)
PUBLISHED = {"coverage": "said", "length": "tokens"}
OPINIONS = ("judge", "rating")
# What a comparison is decided by: the first of these that was measured.
PRIMARY = ("ifeval_strict", "slot_error_rate", "rouge_l", "relevance", "exact_match")
# Beside it in a terminal of 80 columns.
BRIEF = ("clean", "hallucination", "rouge_l")
# Longer names of systems go on below.
NAME = 18
SIGNIFICANT = 0.05
STARRED = "* differs, Holm's corrected p < .05"


def primary(summary: Mapping[str, Any]) -> str:
    """The metric that a comparison is decided by."""
    measured = next(iter(summary["systems"].values()))
    return next((metric for metric in PRIMARY if metric in measured), "length")


def leaderboard(summary: Mapping[str, Any], title: str, width: int = 80) -> Group:
    """One row a system: the deciding metric, its difference to the base and to the control, and what else matters.

    As many metrics as ``width`` has room for, the most telling first; the Markdown and the CSV have all. A star: Holm's
    corrected p is below .05. Below stand the systems that are not for this data.
    """
    columns = _columns(summary)
    names = [textwrap.fill(name, NAME) for name in summary["systems"]]
    room = width - max(len(line) for name in names for line in name.split("\n"))
    table = Table(
        title=Text(title),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=0,
    )
    table.add_column("", no_wrap=True)
    shown: list[list[str]] = []
    for heading, cells in columns:
        room -= 1 + max(len(line) for text in (heading, *cells) for line in text.split("\n"))
        if room < 0:
            break
        table.add_column(heading, justify="right", no_wrap=True)
        shown.append(cells)
    for name, *cells in zip(names, *shown, strict=True):
        table.add_row(Text(name), *(Text(cell, "bold" if cell.endswith("*") else "") for cell in cells))
    below = [f"{name}: not for this data ({reason})" for name, reason in summary["not_for_this_data"].items()]
    below += [STARRED] if any(cell.endswith("*") for cells in shown for cell in cells) else []
    return Group(table, *(Text(wrapped(line, width), style="dim") for line in below))


def _columns(summary: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Heading and cells of every column that a terminal may show, in the order of interest."""
    deciding, systems = primary(summary), summary["systems"]
    measured = next(iter(systems.values()))
    others = [
        metric for metric in dict.fromkeys((*BRIEF, *COLUMNS)) if metric in measured and metric != deciding
    ]

    def means(metric: str) -> tuple[str, list[str]]:
        heading = _heading(metric).replace(" ", "\n")
        return heading, [_short(metrics[metric]["mean"]) for metrics in systems.values()]

    differences = [
        (
            f"to\n{other}",
            [_starred(summary["differences"].get(f"{name}-{other}", {}).get(deciding)) for name in systems],
        )
        for other in _others(summary)
    ]
    seconds = [f"{summary['cost'][name]['seconds']:,.0f}" for name in systems]
    return [means(deciding), *differences, *map(means, others), ("seconds", seconds)]


def _heading(metric: str) -> str:
    return PUBLISHED.get(metric, column_title(metric))


def _starred(found: Mapping[str, Any] | None) -> str:
    """Right-aligned beside one another: where there is no star stands a space."""
    if not found:
        return ""
    return _span(found) + ("*" if found["p_holm"] < SIGNIFICANT else " ")


def markdown(summary: Mapping[str, Any]) -> str:
    """A GitHub table: the deciding metric and its differences with intervals, the means of the others, cost.

    "sampled" is the deciding metric of sampled responses; the CSV has the intervals of all greedy ones.
    """
    deciding, others = primary(summary), _others(summary)
    measured = [metric for metric in COLUMNS if metric in next(iter(summary["systems"].values()))]
    asked = [metric for metric in OPINIONS if metric in next(iter(summary["opinions"]["systems"].values()))]
    heading = ["system", *map(_heading, measured), *map(column_title, asked)]
    place = 2 + measured.index(deciding)
    heading[place:place] = [f"to {other}" for other in others]
    preferred = summary.get("preferences", {})
    base = next(iter(summary["systems"]))
    heading += [f"judge prefers to {base}"] * bool(preferred)
    heading += ["sampled", "KL", "seconds", "generated", "labels"]
    lines = [_row(heading), _row(["---"] * len(heading))]
    for name, metrics in summary["systems"].items():
        cells = [name, *(_short(metrics[metric]["mean"]) for metric in measured)]
        cells[1 + measured.index(deciding)] = _with_ends(metrics[deciding])
        cells[place:place] = [
            _marked(summary["differences"].get(f"{name}-{other}", {}).get(deciding)) for other in others
        ]
        cells += [_with_ends(summary["opinions"]["systems"][name][metric]) for metric in asked]
        if preferred:
            chosen = preferred.get(f"{name}-{base}", {})
            cells.append(_with_ends(chosen) if "mean" in chosen else "")
        sampled = summary["sampled"].get(name, {})
        cells += [_short(sampled[metric]["mean"]) if metric in sampled else "" for metric in (deciding, "kl")]
        cost = summary["cost"][name]
        cells += [f"{cost['seconds']:.0f}", f"{cost['generated_tokens']:,.0f}", f"{cost['labels']:,.0f}"]
        lines.append(_row(cells))
    for name, reason in summary["not_for_this_data"].items():
        lines.append(_row([name, reason, *[""] * (len(heading) - 2)]))
    return "\n".join(lines) + "\n"


def csv_text(summary: Mapping[str, Any]) -> str:
    """One line a system and metric: system, metric, mean, low, high, the differences with their p-values, and the
    difference to the base on the prompts that both answer at equal length, with the share of these prompts.
    """
    others, base = _others(summary), next(iter(summary["systems"]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    parts = ("mean", "low", "high", "p", "p_holm")
    writer.writerow(
        ["system", "metric", "mean", "low", "high"]
        + [f"to {other}: {part}" for other in others for part in parts]
        + [f"at equal length: {part}" for part in ("prompts", *parts[:3])]
    )
    for name, metrics in summary["systems"].items():
        for metric, value in metrics.items():
            row = [name, metric, value["mean"], value["low"], value["high"]]
            for other in others:
                found = summary["differences"].get(f"{name}-{other}", {}).get(metric, {})
                row += [found.get(part, "") for part in parts]
            alike = summary["length_matched"].get(f"{name}-{base}", {})
            row.append(alike.get("prompts", ""))
            row += [alike.get(metric, {}).get(part, "") for part in parts[:3]]
            writer.writerow(row)
    return text.getvalue()


def compared_with(systems: Collection[str], differences: Container[str]) -> list[str]:
    """The base and the control: what every system is compared with."""
    return [other for other in systems if any(f"{name}-{other}" in differences for name in systems)]


def _others(summary: Mapping[str, Any]) -> list[str]:
    return compared_with(summary["systems"], summary["differences"])


def _short(value: float) -> str:
    """Three digits, no zero before the point: .130, -.27, 1.25, 31.6."""
    digits = 3 if abs(value) < 1 else 2 if abs(value) < 10 else 1
    return f"{value:z.{digits}f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.{digits}f}"


def _span(found: Mapping[str, Any]) -> str:
    return "one prompt" if found["low"] is None else f"[{_signed(found['low'])}, {_signed(found['high'])}]"


def _signed(value: float) -> str:
    return ("+" if value >= 0 else "") + _short(value)


def _with_ends(found: Mapping[str, Any]) -> str:
    ends = "one prompt" if found["low"] is None else f"[{_short(found['low'])}, {_short(found['high'])}]"
    return f"{_short(found['mean'])} {ends}"


def _marked(found: Mapping[str, Any] | None) -> str:
    if not found:
        return ""
    text = f"{_signed(found['mean'])} {_span(found)}"
    return f"**{text}**" if found["p_holm"] < SIGNIFICANT else text


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
