"""Base classes of tasks: rows with a prompt and an incomplete reference, and a checker that counts slots.

A checker needs no model and no labels beyond the slots of the prompt. It is used to report, and as the reward
of the ``oracle`` control; no attention reward ever sees it.
"""

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar, Literal, Protocol

from cagsr.errors import InputError, closest

Slot = tuple[str, str]
"""(field, value) as the prompt gives them."""

SPLITS = ("train", "development", "heldout")


@dataclass(frozen=True)
class Check:
    """Slot counts of one response.

    slots         slots that the prompt asks for
    missing       of these, how many the response does not say
    hallucinated  different (field, value) pairs it says that the prompt does not ask for
    repeated      how often it says again, rightly or wrongly, what it had said already
    contradicted  of the hallucinated, how many give another value to a field that the prompt asks for once and whose
                  own value the response does not say (said beside it, another value is invented, not wrong); None
                  where the checker does not tell them apart
    """

    slots: int
    missing: int
    hallucinated: int
    repeated: int
    contradicted: int | None = None

    @property
    def slot_error_rate(self) -> float:
        """(missing + hallucinated + repeated) / slots, 0 or more, lower is better. May exceed 1."""
        return (self.missing + self.hallucinated + self.repeated) / max(self.slots, 1)

    @property
    def quality(self) -> float:
        """1 - slot error rate, not below 0. In [0, 1], higher is better."""
        return max(0.0, 1.0 - self.slot_error_rate)


def count(slots: Iterable[Slot], mentions: Iterable[Slot]) -> Check:
    """Slot counts of a response from the (field, value) pairs it mentions, in any order, and those asked for."""
    asked, said = set(slots), Counter(mentions)
    # Of a field with several values (the things of a note) another value contradicts none; beside the right one it may
    # be an addition ("bring a torch and warm clothes").
    values_of = Counter(field for field, _ in asked)
    right = {field for field, _ in asked & said.keys()}
    invented = said.keys() - asked
    return Check(
        slots=len(asked),
        missing=len(asked - said.keys()),
        hallucinated=len(invented),
        repeated=said.total() - len(said),
        contradicted=sum(values_of[field] == 1 and field not in right for field, _ in invented),
    )


def split_of(key: str) -> str:
    """Split of a key: ``train`` (8 of 10), ``development`` or ``heldout`` (1 of 10 each), by a stable hash of it.

    The split depends on the content and on no seed, so the three parts are disjoint whatever is drawn.
    """
    tenth = int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8]) % 10
    return SPLITS[max(0, tenth - 7)]


class Checker(Protocol):
    """Protocol of a checker: counts the slots of its row that a response says, lacks, invents or repeats."""

    name: str

    def check(self, row: Mapping[str, Any], response: str) -> Check: ...

    def quality(self, row: Mapping[str, Any], response: str) -> float: ...


class Task(ABC):
    """A generated task: seeded rows and their checker.

    A row is JSON-serialisable and has ``prompt``, ``reference`` (true, but it leaves slots out, as the texts
    of real data sets do) and ``slots``, a list of [field, value].
    """

    name: str
    kind: ClassVar[Literal["encoder-decoder", "causal"]] = "encoder-decoder"

    def rows(self, split: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
        """``count`` rows of ``train``, ``development`` or ``heldout``; the same for the same arguments.

        Raises InputError for another split.
        """
        if split not in SPLITS:
            raise InputError(f"no split {split!r}{closest(split, SPLITS)}")
        random = Random(f"{self.name} {split} {seed}")
        rows: list[dict[str, Any]] = []
        while len(rows) < count:
            row = self.draw(random)
            if split_of(self.key(row)) == split:
                rows.append(row)
        return rows

    def key(self, row: Mapping[str, Any]) -> str:
        """Key that decides a row's split: its slots, sorted, so that a reordered prompt stays in its split."""
        return repr(sorted(tuple(slot) for slot in row["slots"]))

    def quality(self, row: Mapping[str, Any], response: str) -> float:
        """1 - slot error rate, not below 0. In [0, 1], higher is better."""
        return self.check(row, response).quality

    @abstractmethod
    def draw(self, random: Random) -> dict[str, Any]:
        """Draw one row of any split."""

    @abstractmethod
    def check(self, row: Mapping[str, Any], response: str) -> Check:
        """Count slots missing, hallucinated and repeated in ``response``."""

    @abstractmethod
    def write(self, slots: Sequence[Slot], random: Random) -> str:
        """A response that says these slots, each once."""

    def complete(self, row: Mapping[str, Any], random: Random) -> str:
        """A response to the row that says every slot once, in random order."""
        slots = [(field, value) for field, value in row["slots"]]
        return self.write(random.sample(slots, len(slots)), random)

    @abstractmethod
    def vocabulary_texts(self) -> list[str]:
        """Texts that contain every word a prompt or a reference can have."""


def leave_out(
    random: Random, slots: Sequence[Slot], least: float, most: float, complete: float
) -> list[Slot]:
    """The slots a reference says, in random order: all with probability ``complete``, else a random share.

    The share is uniform in [least, most]. Both the number and the choice are random, so a model that learned
    from such references finds the end of the text likelier than any one of the slots still unsaid: it omits
    when it decodes greedily, not only when it samples.
    """
    chosen = random.sample(list(slots), len(slots))
    if random.random() < complete:
        return chosen
    return chosen[: max(1, round(random.uniform(least, most) * len(slots)))]
