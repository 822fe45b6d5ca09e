"""Task ``slots``: announce an event; every value is copied literally from the prompt."""

from cagsr.tasks.description import Description, Field


def _literal(frames: tuple[str, ...], values: str) -> Field:
    return Field(frames, {value: (value,) for value in values.split()})


FIELDS = {
    "artist": _literal(
        ("is played by {}", "features {}", "is led by {}"),
        "alba bruno clara dario elena fabian greta hugo irene jonas karla luca",
    ),
    "city": _literal(
        ("happens in {}", "comes to {}", "is held in {}"),
        "porto lyon bergen krakow seville ghent turin malmo graz cork bern riga",
    ),
    "day": _literal(
        ("falls on {}", "is set for {}"), "monday tuesday wednesday thursday friday saturday sunday"
    ),
    "hour": _literal(("starts at {}", "opens at {}"), "one two three four five six seven eight nine ten"),
    "instrument": _literal(
        ("is all about the {}", "is written for the {}"),
        "piano violin cello flute harp guitar trumpet oboe organ drum",
    ),
    "drink": _literal(
        ("offers {} to all", "serves {} afterwards"), "tea coffee cider lemonade cocoa juice water wine"
    ),
    "mood": _literal(
        ("feels {}", "promises to be {}"), "calm merry solemn lively gentle festive wild dreamy"
    ),
    "ticket": _literal(("needs a {} ticket", "asks for a {} ticket"), "red blue green white silver golden"),
}

SLOTS = Description(
    name="slots",
    fields=FIELDS,
    subjects=("this concert", "the show", "our evening"),
    pronouns=("it", "it also"),
    shares=(0.5, 0.85, 0.1),
)
