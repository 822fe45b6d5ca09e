"""Which prompts a training step has, and the seed of its sampling: functions of the run's seed and the step alone."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import torch

from cagsr.types import Prompt

__all__ = ["prompts_for", "step_seed"]


def prompts_for(prompts: Sequence[Prompt], number: int, size: int, seed: int | str) -> list[Prompt]:
    """The prompts of step ``number``: consecutive slices of reshuffled passes over all of them.

    A function of the seed and the number alone, so there is no position to save and every process agrees. A prompt
    that a step has again, because a pass ends within it, is marked: it gets responses of its own.
    """
    chosen: list[Prompt] = []
    position = number * size
    while len(chosen) < size:
        epoch, offset = divmod(position + len(chosen), len(prompts))
        order = Random(f"{seed} {epoch}").sample(range(len(prompts)), len(prompts))
        chosen += [prompts[i] for i in order[offset : offset + size - len(chosen)]]
    before: Counter[int] = Counter()
    for position, prompt in enumerate(chosen):
        if before[prompt.index]:
            chosen[position] = replace(prompt, occurrence=before[prompt.index])
        before[prompt.index] += 1
    return chosen


def step_seed(seed: int, number: int) -> int:
    """The sampling seed of step ``number``."""
    return int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(seed * 1_000_003 + number)))
