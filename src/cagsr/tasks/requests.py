"""Task ``requests``, for instruct models: a message with four to six parts, half of them to be said in other words.

Layouts vary as people's do: a sentence, a list in one line, bullets, numbers, JSON.
"""

import json
import re
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, ClassVar, Literal, NamedTuple

from cagsr.errors import InputError
from cagsr.tasks.task import Check, Slot, Task, count, leave_out


class Part(NamedTuple):
    """A value of a field: how it is asked for, what says it (a pattern), and one way to say it."""

    asked: str
    pattern: str
    reference: str


def _each(asked: str, reference: str, patterns: Mapping[str, str]) -> dict[str, Part]:
    return {
        value: Part(asked.format(value), pattern, reference.format(value))
        for value, pattern in patterns.items()
    }


COPIED: dict[str, dict[str, Part]] = {
    "day": _each(
        "say that it is on {}",
        "It is on {}.",
        {
            day: rf"{day}s?"
            for day in ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
        },
    ),
    "place": _each(
        "say that you meet at {}",
        "We meet at {}.",
        {
            "the town hall": "town hall",
            "the old mill": "old mill",
            "the harbour": "harbou?r",
            "the library": "library",
            "the bus station": "bus station",
        },
    ),
    "bring": _each(
        "ask them to bring {}",
        "Please bring {}.",
        {
            "a torch": "torch(?:es)?",
            "warm clothes": "warm (?:clothes|clothing)",
            "a cake": "cakes?",
            "a spare key": "spare keys?",
            "two chairs": "(?:two|2) chairs",
        },
    ),
    "number": _each(
        "give your number, {}",
        "My number is {}.",
        {number: number.replace("-", r"[- ]?") for number in ["555-0142", "555-0187", "555-0119"]},
    ),
}
"""Fields whose value a message has to repeat: another value of the field is invented."""
REWORDED: dict[str, dict[str, Part]] = {
    "apology": {
        "late": Part(
            "show regret for the late answer",
            r"sorry|apolog\w+|forgive|pardon",
            "I am sorry that it took me so long to write.",
        )
    },
    "cost": {
        "free": Part(
            "make clear that nobody has to pay",
            r"free(?! to| on| at| for)|no (?:charge|cost|fee|payment)|without (?:charge|paying)|nothing to pay|"
            r"(?:not|\w+n't) (?:have|need) to pay|complimentary|no (?:one|body) (?:has|needs) to pay",
            "It is free of charge.",
        )
    },
    "secret": {
        "secret": Part(
            "make sure that nobody else learns of it",
            r"secret|surprise|between us|confidential|private|to (?:your|them)sel(?:f|ves)|"
            r"(?:not|\w+n't|never) (?:tell|share|mention)|tell (?:no ?body|no one)|discreet",
            "Please keep it a secret.",
        )
    },
    "rain": {
        "on": Part(
            "say that it happens even if the sky looks bad",
            r"rain\w*|weather|storm\w*|wet|umbrellas?",
            "We go on even if it rains.",
        )
    },
    "joy": {
        "joy": Part(
            "say how much you want it to come",
            r"look(?:ing)? forward|(?:can'?t|cannot|can not) wait|excited|thrilled|eager|delighted",
            "I look forward to it so much.",
        )
    },
    "haste": {
        "soon": Part(
            "ask for an answer in the very near future",
            r"soon|asap|quick(?:ly)?|prompt(?:ly)?|right away|immediately|at once|earliest|without delay|urgent(?:ly)?",
            "Please let me know as soon as you can.",
        )
    },
}
"""Fields that a message says in words of its own."""
PARTS = COPIED | REWORDED
PLAIN = str.maketrans("’‐‑–", "'---")
"""Apostrophes and hyphens as the patterns have them: many a model writes the typographic ones."""
PEOPLE = "your neighbour Ada|your cousin Milo|your colleague Priya|your old teacher Mr Novak|your friend Lena"
OCCASIONS = (
    "the street party|the moving day|the choir trip|the clean-up of the park|the birthday of your aunt"
)
LAYOUTS = ("sentence", "line", "bullets", "numbers", "json")


class Requests(Task):
    """Task: write a short message to somebody, with all parts of a list in it."""

    name = "requests"
    kind: ClassVar[Literal["encoder-decoder", "causal"]] = "causal"

    def draw(self, random: Random) -> dict[str, Any]:
        size = random.randint(4, 6)
        copied = random.sample(list(COPIED), size // 2)
        fields = copied + random.sample(list(REWORDED), size - size // 2)
        random.shuffle(fields)
        slots = [(field, random.choice(list(PARTS[field]))) for field in fields]
        person, occasion = random.choice(PEOPLE.split("|")), random.choice(OCCASIONS.split("|"))
        asked = [PARTS[field][value].asked for field, value in slots]
        content = _laid_out(random.choice(LAYOUTS), person, occasion, asked)
        return {
            "prompt": [{"role": "user", "content": content}],
            "reference": self.write(leave_out(random, slots, 0.5, 0.85, 0.1), random),
            "slots": [list(slot) for slot in slots],
        }

    def write(self, slots: Sequence[Slot], random: Random) -> str:
        """A sentence for each of the slots, in their order."""
        return " ".join(PARTS[field][value].reference for field, value in slots)

    def check(self, row: Mapping[str, Any], response: str) -> Check:
        """Count parts missing, invented (another day, place, thing or number) and told again in a later sentence."""
        asked = [(field, value) for field, value in row["slots"]]
        mentions = [
            (field, value)
            for sentence in re.split(r"[.!?\n]+", response.translate(PLAIN))
            for field, parts in PARTS.items()
            for value, part in parts.items()
            # A politeness that nobody asked for ("I look forward to ...") is no invention.
            if ((field, value) in asked or field in COPIED)
            and re.search(rf"(?<!\w)(?:{part.pattern})(?!\w)", sentence, re.IGNORECASE)
        ]
        return count(asked, mentions)

    def vocabulary_texts(self) -> list[str]:
        raise InputError(
            f"the task {self.name} has no vocabulary of its own: it is for a pretrained instruct model; name one in "
            "model.name"
        )


def _laid_out(layout: str, person: str, occasion: str, parts: Sequence[str]) -> str:
    ask = f"Write a short message to {person} about {occasion}."
    if layout == "json":
        return json.dumps(
            {"task": "short message", "to": person, "about": occasion, "must": list(parts)}, indent=1
        )
    if layout == "bullets":
        return "\n".join([ask, "", *(f"- {part}" for part in parts)])
    if layout == "numbers":
        return "\n".join([ask, *(f"{number}. {part}" for number, part in enumerate(parts, 1))])
    if layout == "line":
        return f"{ask} Put all of this in: {'; '.join(parts)}."
    return f"{ask} In it, {', '.join(parts[:-1])} and {parts[-1]}."


REQUESTS = Requests()
