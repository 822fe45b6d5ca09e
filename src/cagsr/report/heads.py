"""Picture of the attention heads that a reward reads: layers x heads, each head's agreement, the read ones marked."""

from typing import Any

from cagsr.report.names import number, tick
from cagsr.rewards.heads_found import FOLLOWS, KNOCKOUT, Heads

__all__ = ["heads_picture"]

# Laid out as the curves are (`cagsr.report.plot`): pixels of a viewBox that is as wide as theirs.
WIDTH, LEFT, RIGHT, TOP, BOTTOM = 320, 26, 4, 4, 20
LARGEST, TALLEST = 16.0, 300.0
MOST_TICKS = 8
# Share of a cell's side that is drawn: heads that agree, and heads that do not, which are smaller too.
WITH, AGAINST = 0.88, 0.44


def heads_picture(found: Heads, run: str, identity: str) -> dict[str, Any]:
    """Template variables of the heads of one run.

    ``cells`` are ``(x, y, side, opacity)`` by whether they agree ``with`` the knockouts or ``against`` them: a column a
    layer, a row a head, the opacity its agreement's share of the strongest. ``read`` are the frames around the heads
    that are read, ``layers`` the rows of the table.
    """
    layers = sorted(found.all)
    most = max(len(found.all[layer]) for layer in layers)
    size = min((WIDTH - LEFT - RIGHT) / len(layers), TALLEST / most, LARGEST)
    strongest = max(abs(value) for layer in layers for value in found.all[layer]) or 1.0
    cells: dict[str, list[tuple[float, ...]]] = {"with": [], "against": []}
    read = []
    for column, layer in enumerate(layers):
        for head, value in enumerate(found.all[layer]):
            at = (LEFT + size * column, TOP + size * head)
            kind, side = ("with", size * WITH) if value > 0 else ("against", size * AGAINST)
            x, y = (round(start + (size - side) / 2, 1) for start in at)
            cells[kind].append((x, y, round(side, 1), round(abs(value) / strongest, 2)))
            if any(found.weights.get(layer, ())[head : head + 1]):
                says = f"layer {layer}, head {head}: {number(value)}"
                read.append((*(round(start + 0.4, 1) for start in at), round(size - 0.8, 1), says))
    bottom = TOP + size * most
    return {
        "id": identity,
        "run": run,
        "width": WIDTH,
        "height": round(bottom + BOTTOM),
        "cells": cells,
        "read": read,
        "x_ticks": [(round(LEFT + size * (at + 0.5), 1), str(layers[at])) for at in _ticks(len(layers))],
        "y_ticks": [(round(TOP + size * (at + 0.5) + 3.5, 1), str(at)) for at in _ticks(most)],
        "x_axis": round(bottom + 13, 1),
        "layers": _table(found),
        **_said(found),
    }


def _ticks(count: int) -> range:
    return range(0, count, -(-count // MOST_TICKS))


def _said(found: Heads) -> dict[str, str]:
    """The heads in words: how many are read, of how many layers, what they agree with, and what follows."""
    layers = found.layers
    read = [layer.read for layer in layers.values()]
    are = "would be read" if found.preset == KNOCKOUT else "are read"
    says = (
        f"{sum(read)} of {sum(layer.heads for layer in layers.values())} heads {are}, in "
        f"{sum(count > 0 for count in read)} of {len(read)} layers: those that look at a piece of the prompt where the "
        f"base's responses would lose it (rank correlation within a piece {number(found.agreement)} on the average, "
        f"{found.pieces} pieces)."
    )
    follows, decided = found.follows, found.decision
    if follows is not None:
        side = "at least" if follows >= FOLLOWS else "below"
        decided = f"{number(follows)}, {side} {tick(FOLLOWS)}. {decided[0].upper()}{decided[1:]}"
    criterion = f"Rank correlation with the knockouts, over all responses and pieces: {decided}."
    return {"says": says, "criterion": criterion}


def _table(found: Heads) -> list[tuple[str, str, str, str]]:
    """Of each layer its number, mean and highest agreement, and the heads that are read, in words."""
    rows = []
    for layer, (mean, _, _) in found.layers.items():
        read = [str(head) for head, weight in enumerate(found.weights.get(layer, ())) if weight]
        rows.append((str(layer), number(mean), number(max(found.all[layer])), ", ".join(read) or "none"))
    return rows
