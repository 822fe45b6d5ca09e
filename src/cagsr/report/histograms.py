"""Histograms of rewards over the steps of a run, laid out in pixels."""

from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

from cagsr.report.names import number, tick
from cagsr.report.plot import HEIGHT, WIDTH, Scale
from cagsr.report.read import Run
from cagsr.report.text import visible

__all__ = ["histograms"]

LEFT, RIGHT, TOP, BOTTOM = 44, 10, 12, 24
# Columns are ranges of steps, rows are ranges of the reward.
MOST_COLUMNS, ROWS = 24, 16


def histograms(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A picture for each run with candidates, all on one scale: a column is the histogram of the rewards of its steps.

    A cell's opacity is its share of the column's candidates over the largest share of any column.
    """
    rewards = [row.reward for run in runs for row in run.candidates]
    if not rewards:
        return []
    low, high = min(rewards), max(rewards)
    if low == high:
        low, high = low - 0.5, high + 0.5
    y = Scale(low, high, HEIGHT - BOTTOM, TOP)
    return [_picture(run, place, y) for place, run in enumerate(runs) if run.candidates]


def _picture(run: Run, place: int, y: Scale) -> dict[str, Any]:
    steps = sorted({row.step for row in run.candidates})
    columns = min(MOST_COLUMNS, len(steps))
    column_of = {step: at * columns // len(steps) for at, step in enumerate(steps)}
    found: list[list[float]] = [[] for _ in range(columns)]
    for row in run.candidates:
        found[column_of[row.step]].append(row.reward)
    width, height = (WIDTH - LEFT - RIGHT) / columns, (HEIGHT - TOP - BOTTOM) / ROWS
    shares = [
        {bin_: count / len(rewards) for bin_, count in Counter(_bin(reward, y) for reward in rewards).items()}
        for rewards in found
    ]
    largest = max(share for column in shares for share in column.values())
    cells = [
        (
            round(LEFT + at * width, 1),
            round(HEIGHT - BOTTOM - (bin_ + 1) * height, 1),
            round(share / largest, 3),
        )
        for at, column in enumerate(shares)
        for bin_, share in sorted(column.items())
    ]
    return {
        "id": f"rewards-{place}",
        "run": place,
        "name": visible(run.name),
        "says": f"Rewards of {len(run.candidates)} candidates: median {number(median(found[0]))} at step {steps[0]}, "
        f"{number(median(found[-1]))} at step {steps[-1]}; from {number(y.low)} to {number(y.high)}",
        "cells": cells,
        "size": (round(width, 2), round(height, 2)),
        "x_ticks": [(LEFT, "start", tick(steps[0])), (WIDTH - RIGHT, "end", tick(steps[-1]))],
        "y_ticks": [(y(at), tick(at)) for at in y.ticks(4)],
    }


def _bin(reward: float, y: Scale) -> int:
    return min(ROWS - 1, int(ROWS * (reward - y.low) / (y.high - y.low)))
