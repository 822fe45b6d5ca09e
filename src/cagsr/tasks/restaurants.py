"""Task ``restaurants``, for instruct models: describe a restaurant from the eight fields of E2E, as a person would ask.

The fields and what they may say are those of the E2E challenge, so its checker counts; names and places are our own.
"""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, ClassVar, Literal

from cagsr.errors import InputError
from cagsr.tasks.e2e import E2E_CHECKER
from cagsr.tasks.task import Check, Slot, Task, leave_out

ASK = "Write one or two sentences describing this restaurant. Mention every fact."

NAMES = (
    "The Copper Kettle|Juniper|The Old Ferry|Saffron Lane|The Blue Door|Marlowe|The Tin Whistle|Pepper and Vine"
    "|The Lamplighter|Oakmoss|The Salted Fig|Harbour Lights|Tamarind|The Clockmaker|Willow Tree|The Paper Crane"
)
PLACES = (
    "Hatters Bridge|Café Lumen|Saint Anne Library|The Glass Arcade|Tollgate Station|Café Verona|Mercer Park"
    "|The Grand Theatre|Fountain Square|The Old Mint"
)
FIELDS: dict[str, tuple[str, str]] = {
    # values, and how a reference says them
    "name": (NAMES, "{}"),
    "eatType": ("pub|coffee shop|restaurant", "is a {}"),
    "food": ("English|Japanese|French|Italian|Indian|Chinese", "serves {} food"),
    "priceRange": ("cheap|moderate|high|less than £20|£20-25|more than £30", "has a {} price range"),
    "customer rating": (
        "low|average|high|1 out of 5|3 out of 5|5 out of 5",
        "has a customer rating of {}",
    ),
    "area": ("riverside|city centre", "is in the {} area"),
    "familyFriendly": ("yes|no", "is {}family friendly"),
    "near": (PLACES, "is near {}"),
}


class Restaurants(Task):
    """Task: a chat message with an instruction and four to eight facts; `tasks.e2e` counts what a response says."""

    name = "restaurants"
    kind: ClassVar[Literal["encoder-decoder", "causal"]] = "causal"

    def draw(self, random: Random) -> dict[str, Any]:
        others = list(FIELDS)[1:]
        fields = ["name", *sorted(random.sample(others, random.randint(3, 7)), key=others.index)]
        slots = [(field, random.choice(FIELDS[field][0].split("|"))) for field in fields]
        facts = "; ".join(f"{field}: {value}" for field, value in slots)
        return {
            "prompt": [{"role": "user", "content": f"{ASK} {facts}"}],
            "reference": self.write(slots[:1] + leave_out(random, slots[1:], 0.5, 0.85, 0.1), random),
            "slots": [list(slot) for slot in slots],
        }

    def write(self, slots: Sequence[Slot], random: Random) -> str:
        """One sentence that says the slots in the order given, the name first."""
        worded = {("familyFriendly", "yes"): "", ("familyFriendly", "no"): "not "}
        said = [FIELDS[slot[0]][1].format(worded.get(slot, slot[1])) for slot in slots if slot[0] != "name"]
        return f"{dict(slots).get('name', 'It')} {' and '.join(said)}."

    def check(self, row: Mapping[str, Any], response: str) -> Check:
        return E2E_CHECKER.check(row, response)

    def vocabulary_texts(self) -> list[str]:
        raise InputError(
            f"the task {self.name} has no vocabulary of its own: it is for a pretrained instruct model; name one in "
            "model.name"
        )


RESTAURANTS = Restaurants()
