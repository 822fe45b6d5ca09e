"""Sanitised text for the rating page: invisible characters, and those that reorder a line, are written out."""

import re

__all__ = ["shown"]

# Controls but tab and line break, marks that reorder a line, marks without width, halves of a surrogate pair.
HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


def shown(text: str) -> str:
    """The text with each hidden character as its code point, ``[U+202E]``, so that it can be sent and read."""
    return HIDDEN.sub(lambda found: f"[U+{ord(found.group()):04X}]", text.replace("\r\n", "\n"))
