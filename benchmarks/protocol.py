"""How everything here is measured: ways take turns in one process, and a ratio is taken within a round.

Whatever else the machine does falls on all ways alike. Seconds are taken on two clocks: those that this process
spent computing (waiting for a busy machine is no cost of the work), and those on the wall.
"""

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

__all__ = ["Bound", "Spread", "Taken", "exponent", "peak_bytes", "ratios", "spread", "take_turns"]

Way = Callable[[], object]


@dataclass(frozen=True)
class Taken:
    """Seconds of one turn: ``cpu`` that the process spent computing on all its threads, ``wall`` that went by."""

    cpu: float
    wall: float


def take_turns(
    ways: Mapping[str, Way], rounds: int, seed: int = 0, warm: bool = False
) -> dict[str, list[Taken]]:
    """Every way once a round, in an order drawn anew for each.

    A round before the first warms up and is not kept, unless the ways are ``warm`` already.
    """
    taken: dict[str, list[Taken]] = {name: [] for name in ways}
    order, shuffle = list(ways), random.Random(seed).shuffle
    for number in range(warm, rounds + 1):
        shuffle(order)
        for name in order:
            cpu, wall = time.process_time(), time.perf_counter()
            ways[name]()
            one = Taken(time.process_time() - cpu, time.perf_counter() - wall)
            if number:
                taken[name].append(one)
    return taken


@dataclass(frozen=True)
class Spread:
    median: float
    low: float
    high: float

    def text(self, digits: int = 2) -> str:
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})"


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def cpu(taken: Sequence[Taken]) -> list[float]:
    return [one.cpu for one in taken]


def ratios(over: Sequence[float], under: Sequence[float]) -> Spread:
    """``over`` / ``under``, round by round."""
    return spread([a / b for a, b in zip(over, under, strict=True)])


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The b of ``value = a * size ** b`` that fits best by least squares of the logarithms."""
    return statistics.linear_regression([*map(math.log, sizes)], [*map(math.log, values)]).slope


def peak_bytes(work: Way) -> int:
    """The most that PyTorch's allocator held at one time during ``work``, beyond what it held before."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        work()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@dataclass(frozen=True)
class Bound:
    """What was promised beside what was measured; the median decides."""

    what: str
    at: Literal["least", "most"]
    limit: float
    measured: Spread
    unit: str = ""

    @property
    def verdict(self) -> str:
        """``met``, or by what part of the limit it was missed."""
        beyond = self.measured.median / self.limit - 1
        missed = beyond if self.at == "most" else -beyond
        return f"missed by {100 * missed:.1f} %" if missed > 0 else "met"
