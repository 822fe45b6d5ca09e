"""Rating items and their order: blind, shuffled for each rater, with attention checks among them.

Two kinds of checks: *foreign*, a response to another prompt, which nobody who reads can find relevant; and
*repeated*, an item that comes again, with its sides exchanged, which nobody who means it answers otherwise.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from random import Random
from typing import Any, Literal

from cagsr.rating.items_source import Group, Response

__all__ = ["QUESTIONS", "Item", "Mode", "choose", "flipped", "from_json", "order", "passed", "to_json"]

Mode = Literal["scores", "pairs"]
# Asked in this order. A score is 1 to 5; a preference is 1 for the first response, -1 for the second, 0 for neither.
QUESTIONS: dict[Mode, tuple[str, ...]] = {
    "scores": ("relevance", "coherence", "overall"),
    "pairs": ("preference",),
}
# One item in so many is a check of each kind.
CHECK_EVERY = 20
FEWEST_WITH_CHECKS = 4
STRANGERS = 50
# A rater passes a check by a relevance of at most so much for a response to another prompt, or by scores of a repeated
# item that differ by at most so much.
LARGEST_FOREIGN_RELEVANCE = 2
LARGEST_CHANGE = 1


@dataclass(frozen=True)
class Item:
    """A rating item: one response to rate, or two to choose from; ``check`` is its kind if it is an attention check.

    repeats  the number, among the items of its mode, of the item that comes again here
    shown    the prompt as a rater reads it, a conversation turn by turn; None: as it is
    """

    prompt: str
    responses: tuple[Response, ...]
    check: Literal["foreign", "repeated"] | None = None
    repeats: int | None = None
    shown: str | None = None


def choose(groups: Sequence[Group], mode: Mode, count: int, random: Random) -> list[Item]:
    """Choose about ``count`` items from the groups, and the attention checks after them.

    Scores: all responses of as many prompts as fit, at least one. Pairs: one pair of each prompt in turn, such
    that the systems meet equally often.
    """
    shuffled = random.sample(groups, len(groups))
    rated = _alone(shuffled, count) if mode == "scores" else _in_pairs(shuffled, count, random)
    checks = 0 if len(rated) < FEWEST_WITH_CHECKS else math.ceil(len(rated) / CHECK_EVERY)
    items = rated + _foreign(rated, checks, random)
    for number in random.sample(range(len(rated)), checks):
        items.append(replace(rated[number], check="repeated", repeats=number))
    return items


def order(items: Sequence[Item], rater: str, seed: int) -> list[int]:
    """Item numbers in the order in which this rater meets them.

    What is repeated comes first within the earlier half of them, and again in the last third.
    """
    random = Random(f"{seed} order {rater}")
    numbers = [number for number, item in enumerate(items) if item.check != "repeated"]
    random.shuffle(numbers)
    again = {number: item.repeats for number, item in enumerate(items) if item.repeats is not None}
    half = len(numbers) // 2
    late = [place for place, number in enumerate(numbers) if place >= half and number in again.values()]
    free = [place for place, number in enumerate(numbers) if place < half and number not in again.values()]
    for place, other in zip(late, random.sample(free, len(late)), strict=True):
        numbers[place], numbers[other] = numbers[other], numbers[place]
    for number in again:
        numbers.insert(random.randint(len(numbers) * 2 // 3, len(numbers)), number)
    return numbers


def flipped(items: Sequence[Item], number: int, rater: str, seed: int) -> bool:
    """Whether this rater sees the second response of a pair on the left. A pair that comes again has changed sides."""
    original = items[number].repeats
    if original is not None:
        return not flipped(items, original, rater, seed)
    return Random(f"{seed} side {number} {rater}").random() < 0.5


def passed(items: Sequence[Item], number: int, answers: Mapping[tuple[int, str], int]) -> bool | None:
    """Whether a rater's answers pass the check that item ``number`` is; None where they are not complete."""
    item = items[number]
    asked = QUESTIONS["scores" if len(item.responses) == 1 else "pairs"]
    numbers = [number] if item.repeats is None else [number, item.repeats]
    if any((each, question) not in answers for each in numbers for question in asked):
        return None
    if item.repeats is not None:
        allowed = LARGEST_CHANGE if len(item.responses) == 1 else 0
        question = asked[-1]
        return abs(answers[number, question] - answers[item.repeats, question]) <= allowed
    if len(item.responses) == 1:
        return answers[number, "relevance"] <= LARGEST_FOREIGN_RELEVANCE
    return answers[number, "preference"] == 1


def to_json(item: Item) -> dict[str, Any]:
    """The item as plain data that `from_json` reads back equal."""
    responses = [{"text": one.text, "systems": list(one.systems)} for one in item.responses]
    return {**vars(item), "responses": responses}


def from_json(content: Mapping[str, Any]) -> Item:
    """The item that `to_json` wrote."""
    responses = tuple(Response(one["text"], tuple(one["systems"])) for one in content["responses"])
    # Studies of earlier versions have nothing else to show.
    return Item(content["prompt"], responses, content["check"], content["repeats"], content.get("shown"))


def _alone(groups: Sequence[Group], count: int) -> list[Item]:
    items: list[Item] = []
    for group in groups:
        if items and len(items) + len(group.responses) > count:
            break
        items += [Item(group.prompt, (response,), shown=group.shown) for response in group.responses]
    return items


def _in_pairs(groups: Sequence[Group], count: int, random: Random) -> list[Item]:
    left = [_pairs(random.sample(group.responses, len(group.responses))) for group in groups]
    met: Counter[tuple[tuple[str, ...], ...]] = Counter()
    items: list[Item] = []
    while any(left) and len(items) < count:
        for group, pairs in zip(groups, left, strict=True):
            if pairs and len(items) < count:
                pair = min(pairs, key=lambda two: met[_systems(two)])
                pairs.remove(pair)
                met[_systems(pair)] += 1
                items.append(Item(group.prompt, pair, shown=group.shown))
    return items


def _pairs(responses: Sequence[Response]) -> list[tuple[Response, Response]]:
    """All pairs of different systems; of one and the same where there is no other."""
    pairs = list(combinations(responses, 2))
    return [(one, other) for one, other in pairs if not set(one.systems) & set(other.systems)] or pairs


def _systems(pair: Sequence[Response]) -> tuple[tuple[str, ...], ...]:
    return tuple(sorted(response.systems for response in pair))


def _foreign(rated: Sequence[Item], count: int, random: Random) -> list[Item]:
    """Items with a response to another prompt, the one of some drawn ones that shares fewest words with this."""
    found = []
    for item in random.sample(rated, count):
        own = {one.text for each in rated if each.prompt == item.prompt for one in each.responses}
        others = [other for other in rated if other.responses[0].text not in own]
        if others:
            drawn = random.sample(others, min(STRANGERS, len(others)))
            words = set(item.prompt.lower().split())
            stranger = min(drawn, key=lambda other: len(words & set(other.prompt.lower().split())))
            response = Response(stranger.responses[0].text, ())
            kept = item.responses[:1] if len(item.responses) == 2 else ()
            found.append(replace(item, responses=(*kept, response), check="foreign"))
    return found
