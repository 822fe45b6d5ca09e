"""Line wrapping for terminals and logs: lines fit the width, and break between words and never inside a number.

Nothing here imports torch.
"""

import re
import textwrap
from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from cagsr.errors import printable

__all__ = ["duration", "fitting", "said", "say", "wrapped"]

# Stands where a line must not be broken, and is written as a space: a blank of Braille, which is printable.
GLUE = "\u2800"
INTERVAL = re.compile(r"[^\s\[]+ ?\[[^\[\]\s]+, [^\[\]\s]+\]")


def say(console: Console, text: str, style: str | None = None, indent: str = "") -> None:
    """Print ``text`` as `wrapped`, whatever is in it: no markup, no control characters."""
    lines = wrapped(printable(text), console.width, indent)
    # soft_wrap: a path that is longer than a line stays whole, to be copied.
    console.print(Text(lines, style or ""), soft_wrap=True)


def wrapped(text: str, width: int, indent: str = "") -> str:
    """``text`` in lines of at most ``width``, the later ones indented by two more, the first by ``indent``.

    A word that is longer than that (a path, say) stays whole, and so does a number with its interval.
    """
    kept = INTERVAL.sub(lambda found: found[0].replace(" ", GLUE), text)
    lines = [
        textwrap.fill(
            line,
            width,
            initial_indent=indent,
            subsequent_indent=indent + "  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line in kept.split("\n")
    ]
    return "\n".join(lines).replace(GLUE, " ")


def said(parts: Iterable[str]) -> str:
    """Join ``parts`` ("reward 2.34", "report: PATH") by two spaces; `wrapped` breaks none of them."""
    return "  ".join(part.replace(" ", GLUE) for part in parts)


def fitting(parts: Iterable[str], width: int) -> str:
    """The first of ``parts``, as many as one line of ``width`` has room for, two spaces between them."""
    line = ""
    for part in parts:
        longer = f"{line}  {part}" if line else part
        if line and len(longer) > width:
            break
        line = longer
    return line


def duration(seconds: float) -> str:
    """Seconds as a short text: 41 s, 12 min, 3.5 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
