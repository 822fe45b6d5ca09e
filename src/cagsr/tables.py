"""What a terminal shows of results: the comparison table, and prompts shaded by what a response covered."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
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
INTERVAL = len(".329–.450")
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
    """One row a system, one column a metric: the mean with its 95 % interval underneath; 80 columns wide."""
    systems = summary["systems"]
    shown = [name for name in TITLES if name in next(iter(systems.values()))]
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    # Names break at their spaces and beside the intervals: all seven metrics then fit a terminal of 80 columns.
    table.add_column("", overflow="fold", max_width=80 - len(shown) * (INTERVAL + 1))
    for name in shown:
        table.add_column(TITLES[name].replace(" ", "\n"), justify="right", no_wrap=True)
    for system, metrics in systems.items():
        table.add_row(system, *(_cell(metrics[name], name) for name in shown))
    return table


def _cell(interval: Mapping[str, float], name: str) -> Group:
    digits = 1 if name == "length" else 3
    ends = f"{_brief(interval['low'])}–{_brief(interval['high'])}"
    return Group(Text(f"{interval['mean']:.{digits}f}"), Text(ends, style="dim"))


def _brief(value: float) -> str:
    """A number of 0 or more in four characters: .329, 1.25, 22.6, 122."""
    texts = [f"{value:.{digits}f}".removeprefix("0") for digits in (3, 2, 1)]
    return next((text for text in texts if len(text) <= 4), f"{value:.0f}")


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
