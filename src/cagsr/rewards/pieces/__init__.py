"""Pieces of a prompt: the parts that an answer can take up or leave out on their own, found by how people write.

List items, rows of a table, lines of code, fields with their values, quoted texts, sentences and their clauses, and the
members of an enumeration. What nearly all prompts of a data set have in common (`Common`) is no piece.
"""

from collections.abc import Sequence

import regex as re

from cagsr.rewards.pieces.blocks import of_text
from cagsr.rewards.pieces.common import Common
from cagsr.rewards.pieces.spans import WORD, Span

__all__ = ["Common", "Span", "pieces"]

# A greeting, thanks or an ending by itself; with more words it may be content ("Hello Kitty cup", "best price").
COURTESY = re.compile(
    r"(?:(?:hi|hello|hey|hiya|hallo|hola|bonjour|salut|dear|liebe[rs]?)(?:\W+(?:there|all|everyone|team|together))?"
    r"|(?:yes|ok|okay|yes)?\W*(?:please|bitte|sorry|cheers|thx|thanks|thank you|merci|danke|gracias)"
    r"(?:\W+(?:a lot|so much|very much|again|in advance|d['’]avance|im Voraus|everyone|all))*"
    r"|(?:kind|best|warm)\s+(?:regards|wishes)(?:\W+\w+){0,2}|(?:dear|liebe[rs]?)(?:\W+\w+){1,2})",
    re.IGNORECASE,
)

# Behind a colon in its sentence a word is a member of a list: "Mention: tea, cake, thanks".
LISTED = re.compile(r"[:：][^.!?。\n]*\Z")


def pieces(text: str, content: Sequence[Span] | None = None, common: Common | None = None) -> list[Span]:
    """Spans of the pieces of ``text``, in order and apart, within ``content`` (None: everywhere).

    A span begins and ends with a word: bullets, separators, quotes around and punctuation behind are outside. Lines of
    code keep theirs. A text in which nothing divides is one piece.
    """
    common = common or Common()
    found: list[Span] = []
    for start, stop in content if content is not None else [(0, len(text))]:
        taken, position = common.spans(text, start, stop), start
        for first, last in [*taken, (stop, stop)]:
            found += of_text(text, position, first)
            position = last
    found = [span for span in found if WORD.search(text, *span)]
    kept = [span for span in found if not COURTESY.fullmatch(text, *span) or LISTED.search(text, 0, span[0])]
    return kept or found
