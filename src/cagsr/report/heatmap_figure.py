"""Drawing of an attention heatmap by matplotlib, without pyplot and its state.

A long prompt is broken into panels, one below another, as a long text is broken into lines.
"""

import unicodedata
from collections.abc import Sequence
from functools import cache

from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor

from cagsr.errors import printable

__all__ = ["draw", "shown"]

WIDEST = 48
"""Columns of a panel: about what the width of a notebook has room for."""

CELL, CHARACTER, MARGIN = 0.2, 0.073, 0.12
"""Inches: a cell's side, a character of a label, and what is left free around labels."""
BAR = 1.1
POINTS, LONGEST = 8, 20
COLOURS, SPECIAL, PLAIN = "Blues", "#a34700", "#222222"

# What DejaVu Sans, which comes with matplotlib, has no characters for: East Asian and Indian scripts, by what is
# installed.
WIDE_FONTS = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Nirmala UI",
    "Arial Unicode MS",
)


def draw(
    attention_TS: Tensor,
    prompt_tokens: Sequence[str],
    response_tokens: Sequence[str],
    special: tuple[frozenset[int], frozenset[int]],
) -> Figure:
    """Draw a heatmap: prompt tokens from left to right, response tokens downwards, special tokens in another colour.

    ``special`` holds the positions of special tokens of the prompt and of the response.

    The colour grows with the root of the attention: a few tokens draw most of it, and the others would look alike.
    """
    prompt, response = ([shown(token) for token in side] for side in (prompt_tokens, response_tokens))
    panels = [range(start, min(start + WIDEST, len(prompt))) for start in range(0, len(prompt), WIDEST)]
    left, height = _longest(response) + MARGIN, len(response) * CELL
    tops = [_longest([prompt[column] for column in panel]) + 2 * MARGIN for panel in panels]
    size = (left + len(panels[0]) * CELL + BAR, sum(tops) + len(panels) * (height + MARGIN))
    figure = Figure(figsize=size, facecolor="white")
    values = attention_TS.cpu().numpy()
    norm = PowerNorm(0.5, vmin=0.0, vmax=max(float(values.max()), 1e-9))
    upper = size[1]
    for panel, top in zip(panels, tops, strict=True):
        upper -= top + height
        axes = _axes(figure, left, upper, len(panel) * CELL, height)
        axes.imshow(values[:, panel.start : panel.stop], norm=norm, cmap=COLOURS, aspect="auto")
        above = {column - panel.start for column in special[0]}
        _label(axes, [prompt[column] for column in panel], above, response, special[1])
        upper -= MARGIN
    tall = min(height, 2.0)
    beside = _axes(figure, left + len(panels[0]) * CELL + 2 * MARGIN, size[1] - tops[0] - tall, MARGIN, tall)
    figure.colorbar(ScalarMappable(norm, COLOURS), cax=beside)
    beside.set_title("attention", fontsize=POINTS, color=PLAIN)
    beside.tick_params(labelsize=POINTS - 1, colors=PLAIN, length=2)
    return figure


def shown(token: str) -> str:
    """A token as a label: no space around it, no control or undrawable characters, not too long."""
    text = token.strip() or token.replace(" ", "␣")
    text = printable(text).replace("\n", "\\n")
    drawn = "".join(c if ord(c) in _characters() else ascii(c)[1:-1] for c in text)
    return drawn if len(drawn) <= LONGEST else drawn[: LONGEST - 1] + "…"


@cache
def _families() -> tuple[str, ...]:
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ("DejaVu Sans", *(name for name in WIDE_FONTS if name in installed))


@cache
def _characters() -> frozenset[int]:
    """The code points that the installed fonts can draw."""
    fonts = (font_manager.get_font(font_manager.findfont(name)) for name in _families())
    return frozenset(point for font in fonts for point in font.get_charmap())


def _longest(labels: Sequence[str]) -> float:
    """Inches of the longest label; a wide character (of East Asia) takes two."""
    wide = [sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in label) for label in labels]
    return CHARACTER * max([*wide, 1])


def _axes(figure: Figure, left: float, lower: float, width: float, height: float) -> Axes:
    """Axes at a place in inches."""
    whole_width, whole_height = figure.get_size_inches()
    return figure.add_axes(
        (left / whole_width, lower / whole_height, width / whole_width, height / whole_height)
    )


def _label(
    axes: Axes,
    columns: Sequence[str],
    special_columns: set[int],
    rows: Sequence[str],
    special_rows: frozenset[int],
) -> None:
    axes.xaxis.tick_top()
    axes.tick_params(length=0, pad=2)
    text = {"fontsize": POINTS, "family": list(_families()), "parse_math": False}
    axes.set_xticks(range(len(columns)), columns, rotation=90, **text)
    axes.set_yticks(range(len(rows)), rows, **text)
    for labels, special in (
        (axes.get_xticklabels(), special_columns),
        (axes.get_yticklabels(), special_rows),
    ):
        for n, label in enumerate(labels):
            label.set_color(SPECIAL if n in special else PLAIN)
    axes.set_xticks([n - 0.5 for n in range(1, len(columns))], minor=True)
    axes.set_yticks([n - 0.5 for n in range(1, len(rows))], minor=True)
    axes.grid(which="minor", color="white", linewidth=0.6)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_color("#cccccc")
