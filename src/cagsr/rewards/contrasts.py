"""Contrasts of a prompt: the prompt with another value in one of its pieces, which tell what a response says of it.

A value is that of a field ("area: riverside", "area[riverside]"); in prose a negation, a number, or a name. Another one
of the same kind is taken from the other prompts, token for token, so that no tokenizer is asked; a negation is taken
away.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from random import Random

import regex as re

from cagsr.rewards.pieces.spans import FIELD, WORD
from cagsr.types import Prompt, Span

__all__ = ["Contrasts", "values_of"]

# "area[riverside]" of a meaning representation, "artist=Nina" of a dialogue act.
BRACKETED = re.compile(r"\s*([^\W_][\w /.'’-]{0,39})\[([^\[\]\n]+)\]?[\s,;.]*")
ASSIGNED = re.compile(r"\s*([^\W\d][\w-]{0,39})=([^=\n]+)")
# "The price range is moderate", of which the data set's own words ("the price range is") may be no part of the piece.
ATTRIBUTE = re.compile(
    r"\s*(?:the|its|their|his|her|your|our|my|der|die|das|le|la|les)\s+((?:[\w\p{M}-]+\s+){1,4}?)(?:is|are|ist|sind|est|sont)\s+",
    re.IGNORECASE,
)
LONGEST_ATTRIBUTE = 60
NUMBER = re.compile(r"(?<![\w.,])\d+(?:[.,]\d+)*(?![\w])")
# Not the first word, which is written so anyway, nor "I".
NAME = re.compile(r"(?<=[^\W\d_]['’\p{Pe}]?[,;]? )(?!I\b)\p{Lu}[\w\p{M}'’-]*(?: \p{Lu}[\w\p{M}'’-]*)*")
# Not "No. 5".
NEGATION = re.compile(r"\b(?:not|never|no(?!\.\s*\d)|nicht|kein\w*|pas)\b", re.IGNORECASE)
REMOVED = "negation"
QUOTES = " \t\r\n\"“”'‘’"

Divide = Callable[[Prompt], Sequence[Sequence[int]]]
"""The tokens of each piece of a prompt, in order."""


def values_of(text: str, start: int, stop: int) -> Iterator[tuple[str, Span]]:
    """Kinds of the values in a piece of a text and where they stand, the likeliest first.

    Values of one kind can take each other's place: those of one field, numbers of as many digits, names.
    """
    if found := BRACKETED.fullmatch(text, start, stop) or ASSIGNED.fullmatch(text, start, stop):
        yield f"field {found[1].casefold()}", _bare(text, *found.span(2))
    elif found := FIELD.match(text, start, stop):
        label = " ".join(WORD.findall(text[slice(*found.span())].casefold()))
        yield f"field {label}", _bare(text, found.end(), stop)
    elif (found := ATTRIBUTE.match(text, _sentence_start(text, start), stop)) and start <= found.end() < stop:
        yield f"field {' '.join(found[1].casefold().split())}", _bare(text, found.end(), stop)
    for kind, pattern in ((REMOVED, NEGATION), ("number", NUMBER), ("name", NAME)):
        if found := pattern.search(text, start, stop):
            yield f"{kind} {len(found[0])}" if kind == "number" else kind, found.span()


class Contrasts:
    """Contrasts of prompts, made of the values that a data set's prompts have; ``divide`` tells their pieces."""

    def __init__(self, prompts: Iterable[Prompt], divide: Divide) -> None:
        self.divide, self.longest = divide, 0
        values: dict[str, dict[str, tuple[int, ...]]] = {}
        for prompt in prompts:
            self.longest = max(self.longest, len(prompt.ids))
            for found in _values_of(prompt, divide(prompt)):
                for kind, text, (first, last) in found:
                    values.setdefault(kind, {}).setdefault(text, prompt.ids[first:last])
        self._values = {kind: sorted(found.items()) for kind, found in values.items()}

    def __bool__(self) -> bool:
        """Is there a prompt with a value in whose place another could stand?"""
        return any(len(values) > 1 or kind.startswith(REMOVED) for kind, values in self._values.items())

    def of(self, prompt: Prompt) -> dict[int, tuple[int, ...]]:
        """The tokens of the whole prompt with another value in a piece, by the piece's number.

        Pieces are missing whose value no other prompt has another of. The choice among several is a function of the
        prompt, and none is longer than the longest prompt of the data set, which the model has positions for.
        """
        pieces = _values_of(prompt, self.divide(prompt))
        own = {(kind, text) for found in pieces for kind, text, _ in found}
        asked = {}
        for number, found in enumerate(pieces):
            others = (self._asked(prompt, number, own, *value) for value in found)
            if (ids := next((ids for ids in others if ids), None)) is not None:
                asked[number] = ids
        return asked

    def _asked(
        self, prompt: Prompt, number: int, own: set[tuple[str, str]], kind: str, text: str, tokens: Span
    ) -> tuple[int, ...] | None:
        others = self._values.get(kind, [])
        if kind.startswith(REMOVED):
            others = [("", ())]
        first = Random(f"{prompt.text} {number}").randrange(len(others)) if others else 0
        for other, ids in others[first:] + others[:first]:
            whole = (*prompt.ids[: tokens[0]], *ids, *prompt.ids[tokens[1] :])
            # Not the twin of a field that is given twice.
            if (kind, other) not in own and 0 < len(whole) <= self.longest:
                return whole
        return None


def _values_of(
    prompt: Prompt, pieces: Sequence[Sequence[int]]
) -> list[list[tuple[str, str, tuple[int, int]]]]:
    """For each piece kind, text and tokens (first, and behind the last) of the values in it."""
    return [list(_in_piece(prompt, piece)) for piece in pieces]


def _in_piece(prompt: Prompt, piece: Sequence[int]) -> Iterator[tuple[str, str, tuple[int, int]]]:
    begin, end = prompt.offsets[piece[0]][0], prompt.offsets[piece[-1]][1]
    for kind, (start, stop) in values_of(prompt.text, begin, end):
        inside = [
            token for token in piece if prompt.offsets[token][0] < stop and start < prompt.offsets[token][1]
        ]
        if not inside or prompt.text[start] in ",;|":
            continue  # "area: ; food: fish" has no area
        first, last = inside[0], inside[-1] + 1
        # Before a digit many tokenizers write the space as a token of its own, before a letter they do not.
        while first and prompt.text[slice(*prompt.offsets[first - 1])] == " ":
            first -= 1
        # What begins or ends inside a token cannot be exchanged token for token.
        covered = prompt.text[prompt.offsets[first][0] : prompt.offsets[last - 1][1]]
        text = prompt.text[start:stop]
        if covered.strip() == text:
            # Tokens are written otherwise behind another character: " Aromi", "[Aromi".
            yield f"{kind} {prompt.text[max(start - 1, 0) : start]!r}", text.casefold(), (first, last)


def _sentence_start(text: str, start: int) -> int:
    """Where the sentence begins that a piece from ``start`` on goes on; at most some words before it."""
    before = max((text.rfind(end, max(0, start - LONGEST_ATTRIBUTE), start) for end in ".!?;,\n"), default=-1)
    return start if before < 0 else before + 1


def _bare(text: str, start: int, stop: int) -> Span:
    """The span without white space and quotation marks around it."""
    inside = text[start:stop]
    return start + len(inside) - len(inside.lstrip(QUOTES)), start + len(inside.rstrip(QUOTES))
