"""Salience of what a column of the data names."""

import re
from collections.abc import Sequence

from cagsr.errors import InputError
from cagsr.rewards.salience.base import Salience, tokens_in
from cagsr.types import Prompt

__all__ = ["Column"]


class Column(Salience):
    """Salience of the words and phrases that a column of the user's data lists for each prompt.

    ``prompt.row[name]`` is a list of texts, each of which must occur in a turn, whoever wrote it, whole words in
    either case; all its occurrences count, stop words and punctuation inside them too. Each text is a piece.

    Raises InputError naming the row when the column is missing, is no list of texts, or lists what the
    prompt does not say.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def weigh(self, prompt: Prompt) -> list[float]:
        inside = {token for piece in self.divide(prompt) for token in piece}
        return [float(token in inside) for token in range(len(prompt.ids))]

    def divide(self, prompt: Prompt) -> list[list[int]]:
        found, taken = [], set[int]()
        for phrase in self._phrases(prompt):
            # A token of two phrases ("Blue Spice", "spice") belongs to the first.
            own = tokens_in(prompt, self._occurrences(phrase, prompt)) - taken
            taken |= own
            found.append(sorted(own))
        return [tokens for tokens in found if tokens]

    def _phrases(self, prompt: Prompt) -> list[str]:
        if self.name not in prompt.row:
            columns = ", ".join(map(repr, prompt.row)) or "none"
            raise InputError(
                f"row {prompt.index + 1}: no salience column {self.name!r}; this row's columns: {columns}. "
                "Correct data.salience_column."
            )
        phrases = prompt.row[self.name]
        if not isinstance(phrases, Sequence) or isinstance(phrases, str):
            raise InputError(
                f"row {prompt.index + 1}: salience column {self.name!r} must be a list of words or phrases "
                f"of the prompt, got {type(phrases).__name__}"
            )
        for phrase in phrases:
            if not isinstance(phrase, str) or not phrase.strip():
                raise InputError(
                    f"row {prompt.index + 1}: salience column {self.name!r} must list words or phrases, "
                    f"got {phrase!r}"
                )
        return list(phrases)

    def _occurrences(self, phrase: str, prompt: Prompt) -> list[tuple[int, int]]:
        pattern = re.compile(rf"(?<!\w){re.escape(phrase.strip())}(?!\w)", re.IGNORECASE)
        spans = [match.span() for part in prompt.written() for match in pattern.finditer(prompt.text, *part)]
        if not spans:
            raise InputError(
                f"row {prompt.index + 1}: salience column {self.name!r} lists {phrase!r}, "
                "which the prompt does not say; correct it or remove it"
            )
        return spans
