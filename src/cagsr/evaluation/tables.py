"""What a terminal shows of results: the comparison table, and prompts shaded by what a response covered."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from cagsr.errors import printable
from cagsr.io.terminal import say
from cagsr.metrics import higher_is_better
from cagsr.metrics.slots import METRICS
from cagsr.metrics.titles import TITLES, column_title
from cagsr.types import Prompt

__all__ = [
    "comparison_table",
    "difference_lines",
    "harness_table",
    "legend",
    "shaded",
    "shades",
    "show_differences",
    "show_evaluation",
]

INTERVAL = len(".329–.450")
SIGNED_INTERVAL = len("-.329–-.450")
# Names take this much of the width beside metrics, or one word of theirs; a longer name goes on below.
NAME, WORD = 20, 10
# Counts: one digit behind the point, and more is not better in itself.
COUNTS = {"length": ("longer", "shorter"), "words": ("longer", "shorter")}
SHADES = (
    "",
    "white on grey23",
    "white on rgb(20,60,40)",
    "white on rgb(20,90,50)",
    "white on rgb(20,110,55)",
    "bold white on rgb(10,130,60)",
)
# Below so many colours the shades cannot be told from one another.
SHADED = ("256", "truecolor")


def comparison_table(summary: Mapping[str, Any], title: str, width: int = 80) -> Group:
    """One row a system, one column a metric: the mean with its 95 % interval underneath.

    What a checker tells comes first; rewards and signals, which may be negative, follow. Metrics that ``width`` (80
    or more) has no room for stand in further tables below.
    """
    systems = summary["systems"]
    names = _ordered(next(iter(systems.values())))
    checked = [name for name in names if name in METRICS] if "slot_error_rate" in names else []
    others = [name for name in names if name not in checked]
    room = min(NAME, max(len(name) for name in systems))
    most = (width - room) // (SIGNED_INTERVAL + 1)
    parts = [(checked, INTERVAL)] if checked else []
    parts += [(others[start : start + most], SIGNED_INTERVAL) for start in range(0, len(others), most)]
    tables = []
    for shown, column in parts:
        heading = None if tables else Text(title)
        table = Table(title=heading, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=0)
        # Names break at their spaces and hyphens, beside the intervals: a checker's seven metrics then fit 80 columns.
        room = max(WORD, min(NAME, width - len(shown) * (column + 1)))
        table.add_column("", no_wrap=True)
        for name in shown:
            heading = re.sub("[ _.]", "\n", column_title(name))
            table.add_column(heading, justify="right", overflow="fold", min_width=INTERVAL, max_width=column)
        for system, metrics in systems.items():
            called = textwrap.fill(printable(system), room)
            table.add_row(Text(called), *(_cell(metrics[name], name) for name in shown))
        tables += [table, ""]
    return Group(*tables[:-1])


def _ordered(metrics: Mapping[str, Any]) -> list[str]:
    """The metrics that have a title in its order, then the others in theirs."""
    return [name for name in TITLES if name in metrics] + [name for name in metrics if name not in TITLES]


def _cell(interval: Mapping[str, Any], name: str) -> Group:
    mean, low, high = (interval[part] for part in ("mean", "low", "high"))
    digits = 1 if name in COUNTS else 3
    shown = f"{mean:z.{digits}f}" if abs(mean) < 1e5 else _brief(mean)
    ends = "1 prompt" if low is None or high is None else f"{_brief(low)}–{_brief(high)}"
    return Group(Text(shown), Text(ends, style="dim"))


def _brief(value: float) -> str:
    """A number in four characters and its sign: .329, 1.25, -22.6, 122, 2e+6."""
    sign = "-" if round(value, 3) < 0 else ""
    texts = [f"{abs(value):.{digits}f}".removeprefix("0") for digits in (3, 2, 1, 0)]
    return sign + next((text for text in texts if len(text) <= 4), f"{abs(value):.0e}".replace("+0", "+"))


def difference_lines(summary: Mapping[str, Any], pair: str) -> list[str]:
    """What changed between two systems, in words; only metrics whose paired interval excludes 0 are called changed.

    Of a signal it is said which way it moved: whether that is better is the reward's to say.
    """
    lines, differences = [], summary["differences"][pair]
    names = _ordered(differences)
    width = max([12, *(len(column_title(name)) for name in names)])
    for name in names:
        mean, low, high = (differences[name][part] for part in ("mean", "low", "high"))
        if low is None or high is None:
            lines.append(
                f"{column_title(name):<{width}} {mean:+z.3f}  one prompt, from which nothing follows"
            )
            continue
        if low <= 0 <= high:
            verdict = "no difference seen"
        elif (higher := higher_is_better(name)) is not None:
            verdict = "better" if (mean > 0) == higher else "worse"
        else:
            verdict = COUNTS.get(name, ("higher", "lower"))[mean < 0]
        lines.append(f"{column_title(name):<{width}} {mean:+z.3f}  [{low:+z.3f}, {high:+z.3f}]  {verdict}")
    return lines


def show_evaluation(summary: Mapping[str, Any], console: Console) -> None:
    """What `cagsr eval` found: the table, and how each model differs from the first."""
    which = {"heldout": "held out", "train": "prompts trained on"}.get(summary["split"], summary["split"])
    title = f"{summary['task']}, {which}, {summary['decoding']}; mean and 95 % interval"
    console.print(comparison_table(summary, title, console.width))
    first = next(iter(summary["systems"]))
    for pair in summary["differences"]:
        show_differences(summary, pair, pair.removesuffix(f"-{first}"), first, console)


def show_differences(summary: Mapping[str, Any], pair: str, name: str, other: str, console: Console) -> None:
    say(console, f"\n{name} against {other}, paired:", style="bold")
    for line in difference_lines(summary, pair):
        say(console, line, indent="  ")


def shades(console: Console) -> bool:
    """Whether a share can be shown as a shade here, and not only as a digit."""
    return console.color_system in SHADED and not console.no_color


def legend(colour: bool) -> Text:
    """What `shaded` shows, in one line."""
    if not colour:
        return Text("(9) the strongest, (3) a third of it; below that nothing is marked", "dim")
    swatches = (Text(f" {step} ", style) for step, style in enumerate(SHADES) if style)
    return Text.assemble(("weak ", "dim"), *swatches, (" strong", "dim"))


def shaded(prompt: Prompt, shares: Sequence[float], colour: bool) -> Text:
    """The prompt's text, each token's background the stronger the higher its share (0 to 1).

    Without colour a share of .3 or more stands behind its token as a digit, 3 to 9.
    """
    text, position = Text(), 0
    for (start, end), share in zip(prompt.offsets, shares, strict=True):
        if start == end:
            continue
        text.append(prompt.text[position:start])
        if colour:
            text.append(prompt.text[start:end], style=SHADES[min(int(share * len(SHADES)), len(SHADES) - 1)])
        else:
            digit = min(int(share * 10), 9)
            text.append(prompt.text[start:end] + (f"({digit})" if digit >= 3 else ""))
        position = end
    text.append(prompt.text[position:])
    return text


def harness_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One row a figure of lm-evaluation-harness: base, result, and their difference with an interval if it has one."""
    table = Table("task", "metric", box=box.SIMPLE_HEAD)
    for column in ("base", "result", "difference", "95 % interval"):
        table.add_column(column, justify="right")
    for row in rows:
        spread = "" if row["low"] is None else f"[{row['low']:+.3f}, {row['high']:+.3f}]"
        figures = [
            f"{row[half]:.3f}" + ("" if (error := row[f"{half}_stderr"]) is None else f" ± {error:.3f}")
            for half in ("base", "result")
        ]
        metric = row["metric"] if row["filter"] == "none" else f"{row['metric']}, {row['filter']}"
        table.add_row(row["task"], metric, *figures, f"{row['difference']:+.3f}", spread)
    return table
