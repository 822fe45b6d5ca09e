"""What a terminal shows of results: the comparison table, and prompts shaded by what a response covered."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from cagsr.types import Prompt

__all__ = ["comparison_table", "difference_lines", "shaded"]

TITLES = {
    "slot_error_rate": "slot errors",
    "coverage": "coverage",
    "perfect": "all slots",
    "clean": "clean",
    "hallucination": "invented",
    "repetition": "repeated",
    "length": "length",
}
LOWER_IS_BETTER = ("slot_error_rate", "hallucination", "repetition")
SHADES = (
    "",
    "on grey15",
    "on rgb(20,60,40)",
    "on rgb(20,90,50)",
    "on rgb(20,125,60)",
    "bold on rgb(25,160,75)",
)


def comparison_table(summary: Mapping[str, Any], title: str) -> Table:
    """One row a system, one column a metric: the mean with its 95 % interval underneath."""
    systems = summary["systems"]
    shown = [name for name in TITLES if name in next(iter(systems.values()))]
    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in shown:
        table.add_column(TITLES[name], justify="right")
    for system, metrics in systems.items():
        table.add_row(system, *(_cell(metrics[name], name) for name in shown))
    return table


def _cell(interval: Mapping[str, float], name: str) -> Group:
    digits = 1 if name == "length" else 3
    ends = f"{interval['low']:.{digits}f}–{interval['high']:.{digits}f}".replace("0.", ".")
    return Group(Text(f"{interval['mean']:.{digits}f}"), Text(ends, style="dim"))


def difference_lines(summary: Mapping[str, Any], pair: str) -> list[str]:
    """What changed between two systems, in words; only metrics whose paired interval excludes 0 are called changed."""
    lines = []
    for name, interval in summary["differences"][pair].items():
        if name not in TITLES or name == "length":
            continue
        mean, low, high = interval["mean"], interval["low"], interval["high"]
        if low <= 0 <= high:
            verdict = "no difference seen"
        else:
            verdict = "better" if (mean < 0) == (name in LOWER_IS_BETTER) else "worse"
        lines.append(f"{TITLES[name]:<12} {mean:+.3f}  [{low:+.3f}, {high:+.3f}]  {verdict}")
    return lines


def shaded(prompt: Prompt, covered: Sequence[float], colour: bool) -> Text:
    """The prompt's text, each token's background the stronger the more it was covered (0 to 1).

    Without colour the strength stands behind the token as a digit from 1 to 9.
    """
    strongest = max([*covered, 1e-9])
    text, position = Text(), 0
    for (start, end), value in zip(prompt.offsets, covered, strict=True):
        if start == end:
            continue
        text.append(prompt.text[position:start])
        share = value / strongest
        if colour:
            text.append(prompt.text[start:end], style=SHADES[min(int(share * len(SHADES)), len(SHADES) - 1)])
        else:
            digit = min(int(share * 10), 9)
            text.append(prompt.text[start:end] + (f"({digit})" if digit else ""))
        position = end
    text.append(prompt.text[position:])
    return text
