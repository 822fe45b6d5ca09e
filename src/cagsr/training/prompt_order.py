"""Which prompts a training step has, and the seed of its sampling: functions of the run's seed and the step alone."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

import torch

from cagsr.types import Prompt

__all__ = ["prompts_for", "step_seed"]


def prompts_for(prompts: Sequence[Prompt], number: int, size: int, seed: int | str) -> list[Prompt]:
    """The prompts of step ``number``: consecutive slices of reshuffled passes over all of them, or, where their data
    sets have weights, over as many of each as its weight says.

    A function of the seed and the number alone, so there is no position to save and every process agrees. A prompt
    that a step has again, because a pass ends within it, is marked: it gets responses of its own.
    """
    parts = _parts(prompts)

    def one_pass(turn: int) -> list[int]:
        places = [place for part in parts for place in _drawn(*part, turn, seed)]
        return _shuffled(places, f"{seed} {turn}")

    length = sum(count for _, count in parts)
    chosen = [prompts[place] for place in _consecutive(one_pass, length, number * size, size)]
    before: Counter[int] = Counter()
    for position, prompt in enumerate(chosen):
        if before[prompt.index]:
            chosen[position] = replace(prompt, occurrence=before[prompt.index])
        before[prompt.index] += 1
    return chosen


def _parts(prompts: Sequence[Prompt]) -> list[tuple[Sequence[int], int]]:
    """The places of the prompts that are drawn from together, and how many of them a pass has.

    Without weights these are all prompts, each once in a pass. With weights a pass is about as long, and has of each
    data set the share of its weight, at least one: some prompts several times before others come once.
    """
    if prompts[0].weight is None:
        return [(range(len(prompts)), len(prompts))]
    places: dict[int, list[int]] = {}
    for place, prompt in enumerate(prompts):
        places.setdefault(prompt.part, []).append(place)
    weights = {prompt.part: prompt.weight or 0.0 for prompt in prompts}
    share = len(prompts) / sum(weights.values())
    return [(found, max(1, round(weights[part] * share))) for part, found in places.items()]


def _drawn(places: Sequence[int], count: int, turn: int, seed: int | str) -> Sequence[int]:
    """The places that pass ``turn`` has of a data set: the next ``count`` of reshuffled passes over it alone."""
    if count == len(places):
        return places
    return _consecutive(
        lambda own: _shuffled(places, f"{seed} {places[0]} {own}"), len(places), turn * count, count
    )


def _consecutive(one_pass: Callable[[int], list[int]], length: int, start: int, count: int) -> list[int]:
    """``count`` places from position ``start`` on, where one pass of ``length`` follows the other."""
    found: list[int] = []
    while len(found) < count:
        turn, offset = divmod(start + len(found), length)
        found += one_pass(turn)[offset : offset + count - len(found)]
    return found


def _shuffled(places: Sequence[int], seed: str) -> list[int]:
    return Random(seed).sample(places, len(places))


def step_seed(seed: int, number: int) -> int:
    """The sampling seed of step ``number``."""
    return int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(seed * 1_000_003 + number)))
