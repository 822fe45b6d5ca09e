"""Task ``qa``: two facts asked of a short context, where an attention reward is not expected to help.

What a weak base lacks here is the knowledge which value belongs to which person, and a reward that asks it to
say more adds none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from cagsr.tasks.phrases import Phrases
from cagsr.tasks.task import Check, Slot, Task, count

PEOPLE = ["anna", "ben", "carl", "dora", "emil", "fay", "gus", "hana", "ivan", "june", "karl", "lena"]


@dataclass(frozen=True)
class Relation:
    """A kind of fact; ``question``: how it is asked of {who}; ``statement``: how {who} and {what} are said."""

    question: str
    statement: str
    values: tuple[str, ...]


RELATIONS = {
    "home": Relation(
        "where does {who} live",
        "{who} lives in {what}",
        ("rome", "oslo", "lima", "cairo", "delhi", "paris", "quito", "tunis"),
    ),
    "pet": Relation(
        "what does {who} keep",
        "{who} keeps a {what}",
        ("cat", "dog", "goat", "horse", "parrot", "rabbit", "snake", "turtle"),
    ),
    "instrument": Relation(
        "what does {who} play",
        "{who} plays the {what}",
        ("harp", "flute", "cello", "piano", "drum", "organ", "viola", "horn"),
    ),
    "job": Relation(
        "what does {who} work as",
        "{who} works as a {what}",
        ("baker", "pilot", "nurse", "farmer", "judge", "sailor", "tailor", "miner"),
    ),
}


class Question(Task):
    """Task: three or four facts, each on another person, two of them asked; half of the references answer only one."""

    name = "qa"

    def __init__(self) -> None:
        self.phrases = Phrases(
            (relation.statement.format(who=who, what=what), (f"{who} {field}", what))
            for field, relation in RELATIONS.items()
            for who in PEOPLE
            for what in relation.values
        )

    def draw(self, random: Random) -> dict[str, Any]:
        facts = []
        for who in random.sample(PEOPLE, random.randint(3, 4)):
            field = random.choice(list(RELATIONS))
            facts.append((f"{who} {field}", random.choice(RELATIONS[field].values)))
        asked = random.sample(facts, 2)
        questions = []
        for subject, _ in asked:
            who, field = subject.split()
            questions.append(RELATIONS[field].question.format(who=who))
        context = " . ".join(self.state(fact) for fact in facts)
        answered = random.sample(asked, random.randint(1, 2))
        return {
            "prompt": f"{context} . {' and '.join(questions)} ?",
            "reference": self.write(answered, random),
            "slots": [list(slot) for slot in asked],
            "facts": [list(fact) for fact in facts],
        }

    def key(self, row: Mapping[str, Any]) -> str:
        """Key that decides a row's split: its facts, sorted, so that two questions on one context share a split."""
        return repr(sorted(tuple(fact) for fact in row["facts"]))

    def state(self, fact: Slot) -> str:
        (who, field), what = fact[0].split(), fact[1]
        return RELATIONS[field].statement.format(who=who, what=what)

    def write(self, slots: Sequence[Slot], random: Random) -> str:
        return " and ".join(self.state(fact) for fact in slots) + " ."

    def check(self, row: Mapping[str, Any], response: str) -> Check:
        """Count slots; a fact of the context that was not asked counts as hallucinated, as a wrong one does."""
        return count(((subject, value) for subject, value in row["slots"]), self.phrases.find(response))

    def vocabulary_texts(self) -> list[str]:
        texts = ["and . ?", *PEOPLE]
        for relation in RELATIONS.values():
            texts += [relation.question.format(who=""), relation.statement.format(who="", what="")]
            texts += relation.values
        return texts


QA = Question()
