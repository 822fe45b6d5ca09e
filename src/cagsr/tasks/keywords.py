"""Task ``keywords``, for causal models: mention given things in a note; words copied, tone and ending paraphrased."""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, ClassVar, Literal

from cagsr.tasks.phrases import Phrases
from cagsr.tasks.task import Check, Slot, Task, count, leave_out

THINGS = (
    "lamp", "garden", "river", "bridge", "kettle", "ladder", "basket", "candle", "mirror", "window", "carpet",
    "wagon", "bicycle", "teapot", "blanket", "piano", "hammer", "bucket", "saddle", "compass", "lantern",
    "anchor", "barrel", "curtain", "drawer", "feather", "pillow", "ribbon", "shovel", "stove",
)  # fmt: skip
TONES = {
    "cheerful": ("hooray , good news !", "what a lovely day !"),
    "formal": ("dear sir or madam ,", "to whom it may concern :"),
    "sad": ("alas , such sorrow .", "i write in tears ."),
    "hasty": ("no time to lose !", "hurry up !"),
}
ENDINGS = {
    "thanks": ("we are so grateful .", "much obliged ."),
    "greetings": ("best wishes to everyone .", "say hello to them all ."),
    "farewell": ("until we meet again .", "goodbye ."),
}
SENTENCES = (
    "the {} is ready .",
    "we found a {} .",
    "bring your {} .",
    "my old {} needs care .",
    "every {} was sold .",
    "please clean that {} .",
)
TEMPLATES = (
    "write a{tone} note about {things}{ending} . note :",
    "a{tone} note must mention {things}{ending} . note :",
    "mention {things} in a{tone} note{ending} . note :",
    "{things} : put all of it into a{tone} note{ending} . note :",
)


class Keywords(Task):
    """Task: a note with three to five things, and in half of the prompts each a tone and an ending."""

    name = "keywords"
    kind: ClassVar[Literal["encoder-decoder", "causal"]] = "causal"

    def __init__(self) -> None:
        self.phrases = Phrases(
            [
                *((thing, ("thing", thing)) for thing in THINGS),
                *((phrase, ("tone", tone)) for tone, phrases in TONES.items() for phrase in phrases),
                *((phrase, ("ending", ending)) for ending, phrases in ENDINGS.items() for phrase in phrases),
            ]
        )

    def draw(self, random: Random) -> dict[str, Any]:
        things = random.sample(THINGS, random.randint(3, 5))
        slots: list[Slot] = [("thing", thing) for thing in things]
        tone = random.choice(list(TONES)) if random.random() < 0.5 else ""
        ending = random.choice(list(ENDINGS)) if random.random() < 0.5 else ""
        slots += [("tone", tone)] * bool(tone) + [("ending", ending)] * bool(ending)
        prompt = random.choice(TEMPLATES).format(
            tone=f" {tone}" if tone else "",
            things=" , ".join(things[:-1]) + " and " + things[-1],
            ending=f" and end with {ending}" if ending else "",
        )
        said = leave_out(random, slots, 0.5, 0.85, complete=0.1)
        # In the prompt's order: a small causal model learns to go on from the thing it said last, and soon says
        # none twice. In random order it must learn which are left, and took many times the steps without doing so.
        reference = self.write([slot for slot in slots if slot in said], random)
        return {"prompt": prompt, "reference": reference, "slots": [list(slot) for slot in slots]}

    def write(self, slots: Sequence[Slot], random: Random) -> str:
        """A note that says the slots: tone first, ending last, the things in the order given."""
        opening = [random.choice(TONES[value]) for field, value in slots if field == "tone"]
        body = [random.choice(SENTENCES).format(value) for field, value in slots if field == "thing"]
        closing = [random.choice(ENDINGS[value]) for field, value in slots if field == "ending"]
        return " ".join(opening + body + closing)

    def check(self, row: Mapping[str, Any], response: str) -> Check:
        return count(((field, value) for field, value in row["slots"]), self.phrases.find(response))

    def vocabulary_texts(self) -> list[str]:
        texts = [template.format(tone="", things="", ending="") for template in TEMPLATES]
        texts += ["and end with ,", *THINGS, *TONES, *ENDINGS, *(line.format("") for line in SENTENCES)]
        return texts + [phrase for said in (*TONES.values(), *ENDINGS.values()) for phrase in said]


KEYWORDS = Keywords()
