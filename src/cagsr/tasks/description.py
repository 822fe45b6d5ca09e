"""Data-to-text from a grammar: a prompt of fields and values, a description that says some of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from cagsr.tasks.phrases import Phrases
from cagsr.tasks.task import Check, Slot, Task, count, leave_out


@dataclass(frozen=True)
class Field:
    """A field of the grammar; ``frames``: verb phrases with ``{}`` for a value; ``values``: each with its wordings."""

    frames: tuple[str, ...]
    values: Mapping[str, tuple[str, ...]]


@dataclass(eq=False)
class Description(Task):
    """Task base: describe a thing of four to six fields; each reference says about two thirds, in any order.

    ``subjects`` begin the first sentence, ``pronouns`` the later ones.
    """

    name: str
    fields: Mapping[str, Field]
    subjects: Sequence[str]
    pronouns: Sequence[str]
    shares: tuple[float, float, float]

    def __post_init__(self) -> None:
        self.phrases = Phrases(
            (phrase, (field, value))
            for field, grammar in self.fields.items()
            for value, realisations in grammar.values.items()
            for phrase in realisations
        )

    def draw(self, random: Random) -> dict[str, Any]:
        fields = random.sample(list(self.fields), random.randint(4, 6))
        slots = [(field, random.choice(list(self.fields[field].values))) for field in fields]
        return {
            "prompt": "describe " + " ; ".join(f"{field} : {value}" for field, value in slots),
            "reference": self.write(leave_out(random, slots, *self.shares), random),
            "slots": [list(slot) for slot in slots],
        }

    def write(self, slots: Sequence[Slot], random: Random) -> str:
        """One to several sentences that say the slots in the order given."""
        text = random.choice(self.subjects)
        for position, (field, value) in enumerate(slots):
            if position:
                text += random.choice([" ,", " and", " . " + random.choice(self.pronouns)])
            grammar = self.fields[field]
            text += " " + random.choice(grammar.frames).format(random.choice(grammar.values[value]))
        return text + " ."

    def check(self, row: Mapping[str, Any], response: str) -> Check:
        return count(((field, value) for field, value in row["slots"]), self.phrases.find(response))

    def vocabulary_texts(self) -> list[str]:
        texts = ["describe : ; , and .", *self.subjects, *self.pronouns]
        for name, grammar in self.fields.items():
            texts += [name, *(frame.format("") for frame in grammar.frames), *grammar.values]
            texts += [phrase for realisations in grammar.values.values() for phrase in realisations]
        return texts
