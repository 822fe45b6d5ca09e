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

COURTESIES = """
yes ok okay sorry please thanks thank thx cheers kind best regards hi hello hey dear bonjour merci
danke hallo hola gracias salut
"""
COURTESY = re.compile(rf"(?:{'|'.join(COURTESIES.split())})(?:[^\w\n]+\w+){{0,3}}", re.IGNORECASE)


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
    return [
        (start, stop)
        for start, stop in found
        if WORD.search(text, start, stop) and not COURTESY.fullmatch(text, start, stop)
    ]
