"""Contrasts of a prompt: the prompt with another value in one of its pieces, which tell what a response says of it.

A value is that of a field ("area: riverside", "area[riverside]"); in prose a number, a name, or a negation. Another one
of the same kind is taken from the other prompts, token for token, so that no tokenizer is asked; a negation is taken
away.
"""

from collections.abc import Callable, Iterable, Sequence
from random import Random

import regex as re

from cagsr.rewards.pieces.spans import FIELD, WORD
from cagsr.types import Prompt, Span

__all__ = ["Contrasts", "value_of"]

# "area[riverside]" of a meaning representation, "artist=Nina" of a dialogue act.
BRACKETED = re.compile(r"\s*([^\W_][\w /.'’-]{0,39})\[([^\[\]\n]+)\]?[\s,;.]*")
ASSIGNED = re.compile(r"\s*([^\W\d][\w-]{0,39})=([^=\n]+)")
NUMBER = re.compile(r"(?<![\w.,])\d+(?:[.,]\d+)*(?![\w])")
# Not the first word, which is written so anyway.
NAME = re.compile(r"(?<=[^\W\d_]['’\p{Pe}]?[,;]? )\p{Lu}[\w\p{M}'’-]*(?: \p{Lu}[\w\p{M}'’-]*)*")
NEGATION = re.compile(r"\b(?:not|never|no|nicht|kein\w*|pas)\b", re.IGNORECASE)
REMOVED = "negation"

Divide = Callable[[Prompt], Sequence[Sequence[int]]]
"""The tokens of each piece of a prompt (`rewards.salience.Pieces.divide`)."""


def value_of(text: str, start: int, stop: int) -> tuple[str, Span] | None:
    """The kind of the value in a piece of a text and where it stands; None where a piece has none.

    Values of one kind can take each other's place: those of one field, numbers of as many digits, names.
    """
    bracketed = BRACKETED.fullmatch(text, start, stop) or ASSIGNED.fullmatch(text, start, stop)
    if bracketed:
        return f"field {bracketed[1].casefold()}", _bare(text, *bracketed.span(2))
    if field := FIELD.match(text, start, stop):
        label = " ".join(WORD.findall(text.casefold(), *field.span()))
        return f"field {label}", _bare(text, field.end(), stop)
    if found := NEGATION.search(text, start, stop):
        return REMOVED, found.span()
    if found := NUMBER.search(text, start, stop):
        return f"number {len(found[0])}", found.span()
    if found := NAME.search(text, start, stop):
        return "name", found.span()
    return None


class Contrasts:
    """Contrasts of prompts, made of the values that a data set's prompts have; ``divide`` tells their pieces."""

    def __init__(self, prompts: Iterable[Prompt], divide: Divide) -> None:
        self.divide = divide
        self._known: dict[str, dict[int, tuple[int, ...]]] = {}
        self._values: dict[str, dict[str, tuple[int, ...]]] = {}
        for prompt in prompts:
            for kind, text, tokens in _values_of(prompt, divide(prompt)).values():
                self._values.setdefault(kind, {})[text] = tuple(prompt.ids[token] for token in tokens)

    def __bool__(self) -> bool:
        """Is there a prompt with a value in whose place another could stand?"""
        return any(len(values) > 1 or kind.startswith(REMOVED) for kind, values in self._values.items())

    def of(self, prompt: Prompt) -> dict[int, tuple[int, ...]]:
        """The tokens of the whole prompt with another value in a piece, by the piece's number.

        Pieces are missing whose value no other prompt has another of. The choice among several is a function of the
        prompt.
        """
        if prompt.text not in self._known:
            found = _values_of(prompt, self.divide(prompt))
            asked = {piece: self._asked(prompt, piece, *value) for piece, value in found.items()}
            self._known[prompt.text] = {piece: ids for piece, ids in asked.items() if ids is not None}
        return self._known[prompt.text]

    def _asked(
        self, prompt: Prompt, piece: int, kind: str, text: str, tokens: Sequence[int]
    ) -> tuple[int, ...] | None:
        others = sorted(ids for other, ids in self._values.get(kind, {}).items() if other != text)
        if kind.startswith(REMOVED):
            others = [()]
        if not others:
            return None
        other = Random(f"{prompt.text} {piece}").choice(others)
        return (*prompt.ids[: tokens[0]], *other, *prompt.ids[tokens[-1] + 1 :])


def _values_of(prompt: Prompt, pieces: Sequence[Sequence[int]]) -> dict[int, tuple[str, str, Sequence[int]]]:
    """Kind, text and tokens of the value of each piece that has one, by the piece's number."""
    found = {}
    for number, piece in enumerate(pieces):
        start, stop = prompt.offsets[piece[0]][0], prompt.offsets[piece[-1]][1]
        value = value_of(prompt.text, start, stop)
        if value is None:
            continue
        kind, (start, stop) = value
        tokens = [
            token for token in piece if prompt.offsets[token][0] < stop and start < prompt.offsets[token][1]
        ]
        # Before a digit many tokenizers write the space as a token of its own, before a letter they do not.
        while tokens and tokens[0] and _text(prompt, tokens[0] - 1) == " ":
            tokens = [tokens[0] - 1, *tokens]
        # What begins or ends inside a token cannot be exchanged token for token.
        covered = prompt.text[prompt.offsets[tokens[0]][0] : prompt.offsets[tokens[-1]][1]] if tokens else ""
        text = prompt.text[start:stop]
        if tokens and covered.strip() == text:
            # Tokens are written otherwise behind another character: " Aromi", "[Aromi".
            found[number] = f"{kind} {prompt.text[start - 1 : start]!r}", text.casefold(), tokens
    return found


def _text(prompt: Prompt, token: int) -> str:
    return prompt.text[slice(*prompt.offsets[token])]


def _bare(text: str, start: int, stop: int) -> Span:
    """The span without white space and quotation marks around it."""
    inside = text[start:stop]
    outside = " \t\r\n\"“”'‘’"
    return start + len(inside) - len(inside.lstrip(outside)), start + len(inside.rstrip(outside))
