"""Phrase matcher: finds phrases of known meaning in a text, by words."""

import re
from collections import defaultdict
from collections.abc import Iterable

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
        self._meaning: dict[tuple[str, ...], Slot] = {}
        for phrase, slot in meanings:
            said = self._meaning.setdefault(tuple(words(phrase)), slot)
            if said != slot:
                raise ValueError(f"{phrase!r} says both {said} and {slot}")
        lengths: defaultdict[str, set[int]] = defaultdict(set)
        for phrase in self._meaning:
            lengths[phrase[0]].add(len(phrase))
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}

    def find(self, text: str) -> list[Slot]:
        """The (field, value) pairs that ``text`` says, in order, with repetitions."""
        found: list[Slot] = []
        read, position = words(text), 0
        while position < len(read):
            for length in self._lengths.get(read[position], ()):
                slot = self._meaning.get(tuple(read[position : position + length]))
                if slot is not None:
                    found.append(slot)
                    position += length
                    break
            else:
                position += 1
        return found
