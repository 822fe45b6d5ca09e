"""Misspelt words get the right suggestion: keys, values, presets, signals, options, columns, splits, systems.

Each item misspells one word of the program in one way, hands it to the program as a user would, and reads the
suggestion off the message. A word misspelt into another word of the same place is no misspelling and is drawn again.
"""

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from inspect import signature
from pathlib import Path
from random import Random
from typing import Any, Literal, NamedTuple, get_args, get_origin

import datasets
from pydantic import BaseModel

from cagsr.config import Config
from cagsr.config.messages import section_of
from cagsr.config.schema import Term
from cagsr.data.prompts import map_columns
from cagsr.data.readers import read, rows_of
from cagsr.errors import InputError
from cagsr.experiments.systems import SYSTEMS, find_systems
from cagsr.rewards.presets import PRESETS, load_preset
from cagsr.rewards.reward import Reward
from cagsr.rewards.signals import SIGNALS
from cagsr.tasks import CHECKERS, TASKS
from cagsr.tasks.checkers import find_checker

TITLE = "misspelt words get the right suggestion"
PROMISE = 9
COUNT = 300
SHARE = 0.95
TWICE = 0.25  # of the words beyond four letters have two typos


class Word(NamedTuple):
    """A word of the program, those it stands beside, and what hands a misspelt one to the program.

    ``home`` is the section that a key in the wrong one belongs to: it is the suggestion then, and nothing is misspelt.
    """

    kind: str
    word: str
    choices: frozenset[str]
    give: Callable[[str], object]
    home: str | None = None


def prove(count: int, random: Random, advance: Callable[[], None]) -> list[str]:
    """Misspelt words that did not get the right suggestion, if they are more than one in twenty."""
    share, failures = measured(count, random, advance)
    return failures if share < SHARE else []


def measured(count: int, random: Random, advance: Callable[[], None]) -> tuple[float, list[str]]:
    """The share of misspelt words that got the right suggestion, and the others with what was said."""
    failures, number = [], min(count, COUNT)
    kinds = words()
    for _ in range(number):
        word = random.choice(kinds[random.choice(tuple(kinds))])
        wrong = _misspelling(word, random)
        said = _answer(word, wrong)
        if (word.home or word.word) not in suggested(said):
            failures.append(f"{word.kind} {word.word!r} as {wrong!r}: {said[:160]}")
        advance()
    return 1 - len(failures) / number, failures


def suggested(message: str) -> list[str]:
    """The word, or the sections, that a message suggests."""
    if found := re.search(r"did you mean '(.+?)'\?", message):
        return [found[1]]
    if found := re.search(r"Did you mean data\.\w+: (.+?)\?", message):
        return [found[1]]
    if found := re.search(r"; it belongs to (.+)", message):
        return found[1].split(" or ")
    return []


def _answer(word: Word, wrong: str) -> str:
    try:
        word.give(wrong)
    except InputError as error:
        return str(error)
    return "taken as it is"


# Typos ------------------------------------------------------------------------------------------------------------

ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def _swap(word: str, random: Random) -> str:
    place = random.randrange(len(word) - 1)
    return word[:place] + word[place + 1] + word[place] + word[place + 2 :]


def _drop(word: str, random: Random) -> str:
    place = random.randrange(len(word))
    return word[:place] + word[place + 1 :]


def _double(word: str, random: Random) -> str:
    place = random.randrange(len(word))
    return word[: place + 1] + word[place:]


def _neighbour(word: str, random: Random) -> str:
    place = random.choice([place for place, letter in enumerate(word) if letter.isalpha()])
    row = next(row for row in ROWS if word[place].lower() in row)
    at = row.index(word[place].lower())
    return word[:place] + random.choice(row[max(0, at - 1) : at] + row[at + 1 : at + 2]) + word[place + 1 :]


def _number(word: str, random: Random) -> str:
    """A plural for a singular, or the other way round."""
    return word.removesuffix("s") if word.endswith("s") else word + "s"


TYPOS: tuple[Callable[[str, Random], str], ...] = (
    _swap,
    _drop,
    _double,
    _neighbour,
    _number,
    lambda word, random: random.choice((word.upper(), word.title(), word.capitalize())),
    lambda word, random: word.replace("_", "-") if "_" in word else word.replace("-", "_"),
    lambda word, random: word.replace("_", random.choice(("", " "))).replace("-", ""),
)


def _misspelling(word: Word, random: Random) -> str:
    if word.home is not None:
        return word.word
    while True:
        wrong = random.choice(TYPOS)(word.word, random)
        if len(wrong) > 4 and random.random() < TWICE:
            wrong = random.choice(TYPOS)(wrong, random)
        if len(wrong) > 1 and wrong not in word.choices:
            return wrong


# Words ------------------------------------------------------------------------------------------------------------


@cache
def words() -> dict[str, list[Word]]:
    """Kind -> the words of that kind, of at least two letters: one letter misspelt could be anything."""
    found: dict[str, list[Word]] = {}
    for word in (*_keys(), *_values(), *_misplaced(), *_names(), *_options(), *_columns(), *_splits()):
        if len(word.word) > 1:
            found.setdefault(word.kind, []).append(word)
    return found


def _sections(model: type[BaseModel] = Config, path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    yield path, model
    for name, field in model.model_fields.items():
        inner = section_of(field)
        if inner and name != "terms":
            yield from _sections(inner, f"{path}.{name}".lstrip("."))


def _set(path: str, key: str, value: str = "1") -> object:
    return Config.load(None, ["data.task=slots", f"{path}.{key}={value}".lstrip(".")])


def _keys() -> Iterator[Word]:
    for path, model in _sections():
        for key in model.model_fields:
            yield Word("key", key, frozenset(model.model_fields), partial(_set, path))


def _values() -> Iterator[Word]:
    for path, model in _sections():
        for key, field in model.model_fields.items():
            allowed = [str(word) for word in _literals(field.annotation)]
            for word in allowed if len(allowed) > 1 else ():
                yield Word("value", word, frozenset(allowed), partial(_set, path, key))


def _literals(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [word for part in get_args(annotation) for word in _literals(part)]


def _misplaced() -> Iterator[Word]:
    """Keys in a section that has none of that name."""
    sections = {path: model for path, model in _sections() if "." not in path}
    for home, model in sections.items():
        for key in model.model_fields if home else ():
            for path, other in sections.items():
                if key not in other.model_fields:
                    yield Word("misplaced key", key, frozenset(), partial(_set, path), home)


def _names() -> Iterator[Word]:
    known: dict[str, tuple[Iterable[str], Callable[[str], object]]] = {
        "preset": (PRESETS, load_preset),
        "signal": (SIGNALS, lambda wrong: Reward([Term(wrong)])),
        "system": (SYSTEMS, lambda wrong: find_systems([wrong], [10])),
        "checker": ([*TASKS, *CHECKERS], _checker),
    }
    for kind, (names, give) in known.items():
        for name in names:
            yield Word(kind, name, frozenset(names), give)


def _checker(wrong: str) -> object:
    return find_checker(
        Config.load(None, ["data.source=x.csv", "model.name=m", f"data.checker={wrong}"]).data
    )


def _options() -> Iterator[Word]:
    for name, function in SIGNALS.items():
        options = list(signature(function).parameters)[1:]
        for option in options:
            yield Word("option", option, frozenset(options), partial(_option, name))


def _option(signal: str, wrong: str) -> object:
    return Reward([Term(signal, options={wrong: 1})])


COLUMNS = (
    "id",
    "meaning_representation",
    "human_reference",
    "summary",
    "article",
    "slots",
    "mr",
    "question",
    "answer",
)


def _columns() -> Iterator[Word]:
    for kind in ("prompt_column", "reference_column", "salience_column"):
        for column in COLUMNS:
            yield Word(kind, column, frozenset(COLUMNS), partial(_mapped, kind))


def _mapped(kind: str, wrong: str) -> object:
    rows = rows_of([dict.fromkeys(COLUMNS, "text")], "d")
    return map_columns(rows, **{"prompt_column": "article", kind: wrong})  # pyright: ignore[reportArgumentType]


SPLITS = ("train", "validation", "test", "heldout")


def _splits() -> Iterator[Word]:
    directory = str(Path(_kept().name) / "splits")
    datasets.disable_progress_bars()
    one = datasets.Dataset.from_list([{"prompt": "x"}])
    datasets.DatasetDict(dict.fromkeys(SPLITS, one)).save_to_disk(directory)
    for split in SPLITS:
        yield Word("split", split, frozenset(SPLITS), partial(read, directory))


@cache
def _kept() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()
