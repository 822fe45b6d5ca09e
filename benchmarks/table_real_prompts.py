"""What the table on a real assistant asks: its tasks, E2E's meanings in five layouts, and two ways to ask better.

A better wording and two worked examples are the rivals that need no training. Each task has one of either: the wording
with the fewest slot errors of three, on eight development prompts of restaurants and six of requests; examples as turns
of the conversation, which did better there than in one message. None was tried on held-out prompts.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

from cagsr.data.readers import read
from cagsr.errors import InputError
from cagsr.io.atomic_write import write_atomically
from cagsr.tasks import CHECKERS, TASKS
from cagsr.tasks.e2e import slots_of
from cagsr.tasks.restaurants import ASK
from cagsr.tasks.task import Checker, split_of

__all__ = ["E2E", "LAYOUTS", "VARIANTS", "WORDINGS", "checker_of", "messages", "prepare_e2e", "rows_of"]

Row = Mapping[str, Any]

E2E = "e2e"
MEANINGS = 2000
"""Of E2E: some 1,600 to train on, 200 of development and 200 held out, by a stable hash of the meaning (`split_of`)."""

BETTER = {
    "restaurants": "Describe this restaurant in one short sentence. Use all of the facts and only these facts, word "
    "for word.",
    "requests": "Remember: every one of these points must be in the message, and nothing else. Keep it short.",
}
EXAMPLES = {
    "restaurants": [
        (
            f"{ASK} name: The Golden Pear; eatType: pub; food: Italian; priceRange: £20-25; customer rating: "
            "3 out of 5; area: city centre; familyFriendly: no; near: Alma Lane",
            "The Golden Pear is a pub near Alma Lane in the city centre. It serves Italian food at £20-25, has a "
            "customer rating of 3 out of 5 and is not family-friendly.",
        ),
        (
            f"{ASK} name: Kumo; food: Japanese; priceRange: cheap; area: riverside; familyFriendly: yes",
            "Kumo is a cheap, family-friendly place by the riverside that serves Japanese food.",
        ),
    ],
    "requests": [
        (
            "Write a short message to your brother Theo about the school fair. In it, say that it is on Sunday, show "
            "regret for the late answer, ask them to bring warm clothes and make clear that nobody has to pay.",
            "Hi Theo, sorry that I am only writing now. The school fair is on Sunday. Please bring warm clothes. It is "
            "free of charge.",
        ),
        (
            "Write a short message to your aunt Rosa about the boat trip. Put all of this in: say that you meet at the "
            "old mill; ask for an answer in the very near future; give your number, 555-0187; say that it happens even "
            "if the sky looks bad; make sure that nobody else learns of it.",
            "Hi Rosa, we meet at the old mill for the boat trip, even if it rains. My number is 555-0187. Please let "
            "me know as soon as you can, and keep it a secret.",
        ),
    ],
}
BETTER[E2E], EXAMPLES[E2E] = BETTER["restaurants"], EXAMPLES["restaurants"]

PROSE = {
    "name": "The name is {}.",
    "eatType": "It is a {}.",
    "food": "The food is {}.",
    "priceRange": "The price range is {}.",
    "customer rating": "The customer rating is {}.",
    "area": "The area is {}.",
    "near": "It is near {}.",
}
FRIENDLY = {"yes": "It is family-friendly.", "no": "It is not family-friendly."}
LAYOUTS = {
    "plain": lambda slots: " " + "; ".join(f"{field}: {value}" for field, value in slots),
    "lines": lambda slots: "".join(f"\n{field}: {value}" for field, value in slots),
    "bullets": lambda slots: "\n" + "".join(f"\n- {field}: {value}" for field, value in slots),
    "prose": lambda slots: " " + " ".join(_sentence(*slot) for slot in slots),
    "fields": lambda slots: " " + " | ".join(f"{field}[{value}]" for field, value in slots),
}
"""How E2E's facts stand behind the instruction; ``plain`` is one line."""
WORDINGS = ("plain", "better", "examples")
"""Ways to ask that every task has: as people ask, in better words, with two worked examples before."""
VARIANTS = (*WORDINGS, *list(LAYOUTS)[1:])
"""All ways to ask; those beyond the wordings are layouts of E2E."""


def checker_of(task: str) -> Checker:
    return CHECKERS[task]


def rows_of(task: str, split: str, count: int, prepared: Path) -> list[dict[str, Any]]:
    """Rows of a split: of a generated task, or of E2E as `prepare_e2e` wrote it."""
    if task != E2E:
        return TASKS[task].rows(split, count)
    rows = [json.loads(line) for line in prepared.read_text(encoding="utf-8").splitlines()]
    found = [row for row in rows if split_of(row["mr"]) == split][:count]
    # Trained on in any layout; measured in one line, unless another layout is asked for.
    return [row | {"prompt": _user(ASK + LAYOUTS["plain"](row["slots"]))} for row in found]


def messages(task: str, row: Row, variant: str) -> list[dict[str, str]]:
    """The conversation that a model is asked with."""
    if variant == "examples":
        turns = [
            (role, text)
            for pair in EXAMPLES[task]
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        return [*({"role": role, "content": text} for role, text in turns), *row["prompt"]]
    asked = row["prompt"][-1]["content"]
    if variant == "better":
        better = BETTER[task]
        return _user(asked.replace(ASK, better) if ASK in asked else f"{asked}\n\n{better}")
    return row["prompt"] if variant == "plain" else _user(ASK + LAYOUTS[variant](row["slots"]))


def prepare_e2e(source: Path, place: Path) -> None:
    """Write E2E's meanings as prompts of conversations, each with all of its references, in a layout by its own lot.

    ``source`` has a row for every reference: ``mr`` ("name[The Mill], area[riverside]") and ``reference``. Written are
    MEANINGS of them in an order drawn once for all, with the columns prompt, mr, slots, reference and references.
    Raises InputError for a file that is none of E2E.
    """
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in _e2e_rows(source)]
    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(place, "".join(lines))


def _e2e_rows(source: Path) -> Iterator[dict[str, Any]]:
    references: dict[str, list[str]] = {}
    for row in read(str(source)):
        if row.problem or not row.values.get("mr") or not isinstance(row.values.get("reference"), str):
            raise InputError(
                f"--e2e: {row.place}: {row.problem or 'no text as mr and reference'}; give E2E's rows"
            )
        references.setdefault(row.values["mr"], []).append(row.values["reference"])
    meanings = sorted(references)
    Random("e2e meanings").shuffle(meanings)
    for mr in meanings[:MEANINGS]:
        slots = slots_of({"mr": mr})
        layout = Random(f"e2e layout {mr}").choice(list(LAYOUTS))
        prompt = _user(ASK + LAYOUTS[layout](slots))
        texts = list(dict.fromkeys(references[mr]))
        yield {"prompt": prompt, "mr": mr, "slots": [list(slot) for slot in slots]} | {
            "layout": layout,
            "reference": texts[0],
            "references": texts,
        }


def _sentence(field: str, value: str) -> str:
    return FRIENDLY[value] if field == "familyFriendly" else PROSE[field].format(value)


def _user(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]
