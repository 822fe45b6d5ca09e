"""Corruptions of good responses (omission, repetition, wrong values): pairs whose order is known without a label.

Pure functions of texts and a seeded `random.Random`. Each gives None where it cannot make the text worse: nothing to
drop, nothing copied, nothing new to insert.
"""

__all__ = ["CONTRASTS", "clauses", "degraded", "dropped", "duplicated", "inserted", "replaced", "swapped"]

import re
from collections.abc import Callable
from functools import partial
from random import Random

from cagsr.data.words import text_words

# A clause ends behind its punctuation or before a word that begins another.
BOUNDARY = re.compile(r"(?<=[.,;:!?])\s+|\s+(?=(?:and|but|with|which|that|while)\s)")
# Without any such place a text is cut into runs of so many words.
RUN = 4


def clauses(text: str) -> list[str]:
    """The clauses of a text in their order, white space at their ends removed; joined by spaces they are the text.

    A clause of nothing but punctuation belongs to the one before it. A text of one clause is cut into runs of four
    words, of which the last may be longer.
    """
    pieces: list[str] = []
    for piece in BOUNDARY.split(text.strip()):
        if pieces and not text_words(piece):
            pieces[-1] += f" {piece}"
        elif piece:
            pieces.append(piece)
    if len(pieces) > 1:
        return pieces
    words = text.split()
    ends = [*range(RUN, len(words) - RUN + 1, RUN), len(words)]
    return [" ".join(words[start:end]) for start, end in zip([0, *ends], ends, strict=False)] if words else []


def dropped(
    text: str, prompt: str, other_text: str, other_prompt: str, random: Random, kept: int = 0
) -> str | None:
    """A clause is left out, none of the first ``kept``: omission."""
    pieces = clauses(text)
    if len(pieces) < 2:
        return None
    out = random.randrange(kept, len(pieces))
    # The full stop of a clause that was last would be missing, which any observer sees: it is not what is missing.
    end = re.search(r"\s*[.!?]+$", text.strip())
    rest = " ".join(pieces[:out] + pieces[out + 1 :])
    return re.sub(r"[\s,;:]+$", "", rest) + end.group() if end and out == len(pieces) - 1 else rest


def duplicated(text: str, prompt: str, other_text: str, other_prompt: str, random: Random) -> str | None:
    """Repetition: a clause is said again at a later place."""
    pieces = clauses(text)
    if not pieces:
        return None
    which = random.randrange(len(pieces))
    where = random.randrange(which, len(pieces)) + 1
    return " ".join([*pieces[:where], pieces[which], *pieces[where:]])


def swapped(text: str, prompt: str, other_text: str, other_prompt: str, random: Random) -> str | None:
    """Wrong values: words that were copied from the prompt become words of another prompt.

    A word that both prompts have is no value of either and stays. None where nothing was copied.
    """
    mine, theirs = set(text_words(prompt)), set(text_words(other_prompt))
    replacements = sorted(theirs - mine)
    copied = sorted((mine - theirs) & set(text_words(text)))
    if not copied or not replacements:
        return None
    becomes = {word: random.choice(replacements) for word in copied}
    return re.sub(r"[^\W_]+", lambda found: becomes.get(found.group().casefold(), found.group()), text)


def inserted(text: str, prompt: str, other_text: str, other_prompt: str, random: Random) -> str | None:
    """Invention: a clause of another prompt's response, which this one does not have, is inserted."""
    pieces = clauses(text)
    new = [piece for piece in clauses(other_text) if piece not in pieces]
    if not new:
        return None
    # Not before the first clause, which names what the text is about.
    where = random.randrange(len(pieces)) + 1 if pieces else 0
    return " ".join([*pieces[:where], random.choice(new), *pieces[where:]])


def replaced(text: str, prompt: str, other_text: str, other_prompt: str, random: Random) -> str | None:
    """Replacement: the whole response of another prompt."""
    return other_text if other_text != text else None


Contrast = Callable[[str, str, str, str, Random], str | None]
"""``(text, prompt, other_text, other_prompt, random)``: the text made worse, or None where it cannot be."""

CONTRASTS: dict[str, Contrast] = {
    "dropped": dropped,
    "duplicated": duplicated,
    "swapped": swapped,
    "inserted": inserted,
    "replaced": replaced,
}

# Without its first clause a text is known for the worse one by how it opens, and another prompt's by its topic.
SUBTLE: tuple[Contrast, ...] = (partial(dropped, kept=1), duplicated, swapped, inserted)


def degraded(text: str, prompt: str, other_text: str, other_prompt: str, random: Random) -> str | None:
    """The text made worse in one way that applies, drawn from SUBTLE: for pairs that a reward model learns from."""
    if not text_words(text):  # anything is as good as an empty text
        return None
    ways = (way(text, prompt, other_text, other_prompt, random) for way in random.sample(SUBTLE, len(SUBTLE)))
    return next((worse for worse in ways if worse is not None), None)
