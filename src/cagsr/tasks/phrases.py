"""Finding phrases of known meaning in a text, by words."""

import re
from collections.abc import Iterable, Mapping

from cagsr.tasks.task import Slot

WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """Lower-case words of a text, without punctuation."""
    return WORD.findall(text.lower())


class Phrases:
    """Phrases and the (field, value) each one says, compiled once.

    Reading is left to right; where two phrases begin at the same word the longer one counts, and words that
    belong to one phrase are not read again for another.

    Raises ValueError when a phrase has two meanings.
    """

    def __init__(self, meanings: Iterable[tuple[str, Slot]]):
        by_words: dict[tuple[str, ...], Slot] = {}
        for phrase, slot in meanings:
            if by_words.setdefault(tuple(words(phrase)), slot) != slot:
                raise ValueError(f"{phrase!r} says both {by_words[tuple(words(phrase))]} and {slot}")
        self._by_first: Mapping[str, list[tuple[tuple[str, ...], Slot]]] = {}
        for phrase in sorted(by_words, key=len, reverse=True):
            self._by_first.setdefault(phrase[0], []).append((phrase, by_words[phrase]))

    def find(self, text: str) -> list[Slot]:
        """The (field, value) pairs that ``text`` says, in order, with repetitions."""
        found: list[Slot] = []
        read, position = words(text), 0
        while position < len(read):
            for phrase, slot in self._by_first.get(read[position], ()):
                if tuple(read[position : position + len(phrase)]) == phrase:
                    found.append(slot)
                    position += len(phrase)
                    break
            else:
                position += 1
        return found
