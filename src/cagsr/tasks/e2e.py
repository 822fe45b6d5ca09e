"""Rule-based checker for the E2E restaurant descriptions: rules for how people paraphrase the eight slots.

A value is read as a meaning: "cheap" and "less than £20" are one price, "3 out of 5" and "average" one
rating, because the people who wrote the references treat them so. A rule finds a meaning in the text whoever
asked for it, so the same rules find what is said, what is invented and what is said again.

Agreement with the ``missing`` annotation that comes with one edition of the data (41 thousand rows, cut by
meaning representation with ``split_of``; rules written on parts of train and development, measured on the
4,112 held-out human references): 98.8 % of 21,975 slots; by field from 97.0 % (priceRange, where "affordable"
is accepted for a moderate price here) to 100 % (name); 96.7 % of the rows on whether anything is missing. By
these rules 6.6 % of the human references say something that their meaning representation lacks or denies,
mostly a wrong area or price, and 1.2 % say something twice.
"""

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from cagsr.errors import InputError
from cagsr.tasks.e2e_rules import COMPILED, MEANING
from cagsr.tasks.task import Check, Slot, count

NEGATED = re.compile(
    r"\b(?:not|no|non|un|isnt|arent|wasnt|doesnt|dont|shouldnt|wouldnt|cant|cannot|never|nor"
    r"|without|unfriendly|unwelcome|unsuitable|exclude\w*|prohibit\w*|discourage\w*|disallow\w*|lacks?)\b"
)
ELSEWHERE = re.compile(
    r"\b(?:outside|away|far|out|not|north|south|east|west|outskirts)(?: (?:of|from|in|the|far|located))* ?$"
)
# "not" just before the words that say a level (which follow the bar) or among them
NOT = re.compile(
    r"\b(?:not|isnt|arent)(?: (?:very|too|that|so|particularly|overly|a|the|have|has|in))* \|"
    r"|\|.*\b(?:not|isnt|arent)\b"
)
OPPOSITE = {"high": "low|middle", "low": "middle|high"}
NUMBERS = {
    "one": "1", "three": "3", "five": "5", "twenty five": "25", "twenty": "20", "thirty": "30",
}  # fmt: skip
NUMBER = re.compile(rf"\b(?:{'|'.join(NUMBERS)})\b")
UNCOUNTED = {"name", "eatType"}


def normalise(text: str) -> str:
    """Lower case without accents, apostrophes and hyphens; number words as digits, all money as ``£20``."""
    text = unicodedata.normalize("NFKD", text.lower())
    text = "".join(letter for letter in text if not unicodedata.combining(letter))
    text = re.sub(r"['’`]", "", text)
    text = re.sub(r"[-–—_\s]+", " ", text)
    text = NUMBER.sub(lambda found: NUMBERS[found.group()], text)
    text = re.sub(r"[$€]|£ ", "£", text)
    text = re.sub(r"£?\b(\d+) ?(?:pounds?|euros?|gbp|quid|dollars?)\b", r"£\1", text)
    return re.sub(r"£(\d+)\.00\b", r"£\1", text)


def slots_of(row: Mapping[str, Any]) -> list[Slot]:
    """The slots of a row: ``slots`` if it has them, else parsed from ``mr`` or ``meaning_representation``.

    Raises InputError for a row with none of the three, or in whose text there is no ``field[value]``.
    """
    if row.get("slots"):
        return [(field, value) for field, value in row["slots"]]
    text = row.get("mr") or row.get("meaning_representation")
    if not text:
        columns = ", ".join(repr(column) for column in row)
        raise InputError(f"an E2E row needs 'slots', 'mr' or 'meaning_representation'; found {columns}")
    slots = [(field.strip(), value) for field, value in re.findall(r"([\w ]+)\[([^\]]*)\]", text)]
    if not slots:
        raise InputError(f"no slots in {text!r}; expected e.g. 'name[The Mill], area[riverside]'")
    return slots


class E2E:
    """Checks descriptions of restaurants against their meaning representation.

    Two wordings of one meaning side by side ("a cheap place, less than £20") are one mention; the same
    wording again, or the meaning again later, is a repetition. A name and a type of place may recur. "Restaurant" is
    what people call any of them, so it is never invented. Another place's name is not recognised as invented.
    """

    name = "e2e"

    def check(self, row: Mapping[str, Any], response: str) -> Check:
        """Count slots missing, hallucinated (lacking from the row or contradicting it) and repeated."""
        slots = slots_of(row)
        asked = {field: MEANING.get((field, value), value) for field, value in slots}
        mentions = [
            (field, self._resolve(meaning, asked.get(field)))
            for field, meaning in self._mentions(slots, response)
        ]
        mentions = [
            mention
            for mention in mentions
            if mention != ("eatType", "restaurant") or mention in asked.items()
        ]
        once = dict.fromkeys(mention for mention in mentions if mention[0] in UNCOUNTED)
        return count(asked.items(), [*once, *(m for m in mentions if m[0] not in UNCOUNTED)])

    def quality(self, row: Mapping[str, Any], response: str) -> float:
        """1 - slot error rate, not below 0. In [0, 1], higher is better."""
        return self.check(row, response).quality

    @staticmethod
    def _resolve(meaning: str, asked: str | None) -> str:
        """Resolve an ambiguous wording ("affordable": low or middle) to what was asked for if it can mean that."""
        choices = meaning.split("|")
        return asked if asked in choices else choices[0]

    @staticmethod
    def _mentions(slots: list[Slot], response: str) -> list[Slot]:
        """(field, meaning) pairs in the order said."""
        text = normalise(response)
        found: list[tuple[int, int, Slot]] = []
        for field, value in slots:
            if field in ("name", "near"):
                literal = re.escape(normalise(value).removeprefix("the "))
                for match in re.finditer(rf"\b{literal}s?\b", text):
                    found.append((match.start(), match.end(), (field, value)))
                # what a name is made of ("Raja Indian Cuisine") says nothing about other slots
                text = re.sub(rf"\b{literal}s?\b", lambda match: "@" * len(match.group()), text)
        for field, meaning, rule in COMPILED:
            for match in rule.finditer(text):
                said = _negate(field, meaning, text, match.start(), match.end())
                if said:
                    found.append((match.start(), match.end(), (field, said)))
        found.sort(key=lambda mention: (mention[0], -mention[1]))
        return _distinct(found, text)


def _negate(field: str, meaning: str, text: str, start: int, end: int) -> str:
    """The meaning after negations in and shortly before the words that say it; empty if nothing is left."""
    before = " ".join(re.split(r"[.,;!?]|\b(?:and|but|with|while)\b", text[:start])[-1].split()[-6:])
    if field == "familyFriendly" and meaning == "yes" and NEGATED.search(f"{before} {text[start:end]}"):
        return "no"
    if field == "area" and ELSEWHERE.search(before):
        return ""
    if meaning in OPPOSITE and NOT.search(f"{before} |{text[start:end]}"):
        return OPPOSITE[meaning]
    return meaning


def _distinct(found: list[tuple[int, int, Slot]], text: str) -> list[Slot]:
    """Mentions without those inside a longer one, and with neighbouring wordings of one meaning joined."""
    kept: list[tuple[int, int, Slot]] = []
    for start, end, slot in found:
        if kept and start < kept[-1][1]:
            if end - start > kept[-1][1] - kept[-1][0]:
                kept[-1] = (start, end, slot)
            continue
        kept.append((start, end, slot))
    mentions: list[Slot] = []
    previous: tuple[int, int, Slot] | None = None
    for start, end, slot in kept:
        joined = (
            previous is not None
            and previous[2] == slot
            and text[start:end] != text[previous[0] : previous[1]]
            and not re.search(r"[.!?]", text[previous[1] : start])
        )
        if not joined:
            mentions.append(slot)
        previous = (start, end, slot)
    return mentions


E2E_CHECKER = E2E()
