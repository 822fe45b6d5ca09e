"""What the pictures are made of: squares of a heat map, words, and the SVG around them.

Colours are variables that the site sets for light and dark; what stands behind the comma is for other readers.
"""

from collections.abc import Iterator, Sequence
from html import escape

from torch import Tensor

__all__ = ["CELL", "FAINT", "INK", "MARK", "PAPER", "TEXT", "heat", "svg", "words"]

INK, PAPER = "var(--figure-ink, #24566f)", "var(--figure-paper, #ffffff)"
TEXT, FAINT = "var(--figure-text, #222222)", "var(--figure-faint, #8a8a8a)"
MARK = "var(--figure-mark, #b3541e)"
CELL = 22


def heat(
    shades: Tensor,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    left: int,
    top: int,
    cell: int = CELL,
    font: int = 11,
) -> Iterator[str]:
    """A square for each entry, the darker the greater; the names of rows at the left, of columns above, on edge."""
    for y, name in enumerate(rows):
        yield words(left - 6, top + y * cell + cell * 0.7, name, TEXT, font, "end")
    for x, name in enumerate(columns):
        at, high = left + x * cell + cell * 0.7, top - 6
        yield words(at, high, name, TEXT, font, more=f' transform="rotate(-60 {at:.1f} {high})"')
    whole = f'x="{left}" y="{top}" width="{cell * len(columns) - 1}" height="{cell * len(rows) - 1}"'
    yield f'<rect {whole} fill="{FAINT}" fill-opacity=".1"/><g fill="{INK}">'
    for y in range(len(rows)):
        for x in range(len(columns)):
            value = float(shades[y, x])
            place = f'x="{left + x * cell}" y="{top + y * cell}" width="{cell - 1}" height="{cell - 1}"'
            if value >= 0.02:
                yield f'<rect {place} fill-opacity="{min(value * 1.4, 1):.2f}"/>'
    yield "</g>"


def words(
    x: float, y: float, text: str, colour: str = TEXT, size: int = 12, anchor: str = "start", more: str = ""
) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{colour}"{more}'
    return f"<text {place}>{escape(text)}</text>"


def svg(width: float, height: float, body: Sequence[str], title: str) -> str:
    # Without blank lines: the site puts it into a paragraph.
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'font-family="ui-sans-serif, system-ui, sans-serif"><title>{escape(title)}</title>'
        f'<rect width="100%" height="100%" fill="{PAPER}"/>' + "".join(body) + "</svg>"
    )
