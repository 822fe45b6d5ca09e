"""Tables of a step's candidates for dashboards (W&B, trackio, TensorBoard)."""

import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["show_candidates"]

NAME = "candidates"


def show_candidates(trackers: Iterable[Any], step: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Log rows of candidates.jsonl to Accelerate's trackers: a table of W&B or trackio, Markdown for TensorBoard."""
    if not rows:
        return
    signals = list(rows[0]["signals"])
    columns = ["prompt", "response", "reward", "advantage", *signals]
    data = [
        [row["prompt"], row["response"], row["reward"], row["advantage"], *row["signals"].values()]
        for row in rows
    ]
    for tracker in trackers:
        if tracker.name == "tensorboard":
            table: Any = _markdown(columns, data)
        else:  # both have a Table of the same two arguments
            table = importlib.import_module(tracker.name).Table(columns=columns, data=data)
        tracker.log({NAME: table}, step=step)


def _markdown(columns: Sequence[str], data: Sequence[Sequence[Any]]) -> str:
    heading, *body = [[_cell(value) for value in line] for line in (columns, *data)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (heading, ["---"] * len(columns), *body))


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    # One line, and nothing that is Markdown or that TensorBoard's files cannot hold.
    text = " ".join(str(value).encode("utf-8", "backslashreplace").decode().split())
    return "".join(
        f"\\{character}" if character in r"\`*_{}[]<>()#+-.!|~" else character for character in text
    )
