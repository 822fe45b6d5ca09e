"""Text for display: invisible characters made visible, and words aligned with tokens."""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import regex

__all__ = ["Words", "visible"]

# Controls, marks that turn the direction of writing, characters of no width and half surrogates. What joins letters
# of Persian, of Indian scripts and of emoji (U+200C, U+200D) stays.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_RUNS = re.compile(r"\S+")
# From the first letter or digit of a run to the last.
_INNER = regex.compile(r"[\p{L}\p{M}\p{N}](?:\S*[\p{L}\p{M}\p{N}])?")
# A run of characters without spaces that has more tokens than this is no word but a clause, as in Chinese.
MOST_TOKENS = 8

Span = Sequence[int]


def visible(text: str) -> str:
    """The text with every character that cannot be seen, or that reorders others, as ``⟨U+202E⟩``.

    Line breaks and tabs stay. The result has no surrogates, so that any encoding takes it.
    """
    return _INVISIBLE.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)


@dataclass(frozen=True)
class Words:
    """A text cut into words and marks of punctuation, and which of them each token writes.

    ``pieces``  as they are shown; joined they are the whole text, spaces included
    ``of``      for each token the piece that it writes, or None where it writes none
    """

    pieces: list[str]
    of: list[int | None]

    @classmethod
    def cut(cls, text: str, tokens: Sequence[Span] = ()) -> "Words":
        """``tokens`` are the characters of each token, ``(0, 0)`` or any empty span for one without text."""
        starts = [_first_character(text, *span) for span in tokens]
        bounds = _bounds(text, sorted({start for start in starts if start is not None}))
        ends = [*bounds[1:], len(text)][: len(bounds)]
        return cls(
            [visible(text[start:end]) for start, end in zip(bounds, ends, strict=True)],
            [None if start is None else bisect_right(bounds, start) - 1 for start in starts],
        )


def is_word(piece: str) -> bool:
    """Whether a piece has a letter or a digit."""
    return _INNER.search(piece) is not None


def _bounds(text: str, token_starts: list[int]) -> list[int]:
    """Start positions of the pieces; the first is 0, so that leading spaces belong to it."""
    bounds: list[int] = []
    for run in _RUNS.finditer(text):
        inner = _INNER.search(text, *run.span())
        start, end = inner.span() if inner else (run.end(), run.end())
        inside = [position for position in token_starts if start < position < end]
        cuts = inside if len(inside) >= MOST_TOKENS else []
        bounds += sorted({run.start(), start, *cuts, end} - {run.end()})
    return [0, *bounds[1:]] if text else []


def _first_character(text: str, start: int, end: int) -> int | None:
    """The first character of a token that is no space: tokenizers give the space before a word to it."""
    return next((at for at in range(max(start, 0), min(end, len(text))) if not text[at].isspace()), None)
