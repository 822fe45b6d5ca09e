"""What is kept of a measured run: ``result.json`` beside its responses, ``preferences.json`` of a pairwise judge."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cagsr.errors import StorageError
from cagsr.io.atomic_write import write_atomically
from cagsr.metrics.judge import Preferences
from cagsr.runs.directory import RESPONSES

__all__ = [
    "PREFERENCES",
    "RESULT",
    "Result",
    "as_json",
    "read_preferences",
    "read_responses",
    "read_result",
    "stacked",
    "write_preferences",
]

RESULT, PREFERENCES = "result.json", "preferences.json"


@dataclass(frozen=True)
class Result:
    """One run, measured: metric -> [P] of greedy responses, metric -> [Q] of sampled ones, and what it cost.

    ``opinions`` of a judge and of people are [P] of greedy responses too, NaN where nobody had one; ``not_measured``
    is metric -> why.
    """

    greedy: dict[str, np.ndarray]
    sampled: dict[str, np.ndarray]
    opinions: dict[str, np.ndarray]
    cost: dict[str, float]
    not_measured: dict[str, str]


def read_result(directory: Path) -> Result:
    """What was measured of the run in ``directory``. Raises StorageError where the file is damaged."""
    path = directory / RESULT
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        parts = {
            part: {metric: np.array(value, dtype=float) for metric, value in content[part].items()}
            for part in ("greedy", "sampled", "opinions")
        }
        return Result(**parts, cost=content["cost"], not_measured=content.get("not_measured", {}))
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{path} is damaged ({error}); remove it and run with --resume") from error


def as_json(values: np.ndarray) -> list[float | None]:
    """Numbers as JSON has them: None where nobody had an opinion."""
    return [None if np.isnan(one) else one for one in values.tolist()]


def write_preferences(directory: Path, said: Preferences) -> None:
    """Raises StorageError."""
    content = {
        "values": as_json(said.values),
        "disagreements": said.disagreements,
        "failures": said.failures,
    }
    write_atomically(directory / PREFERENCES, json.dumps(content, allow_nan=False) + "\n")


def read_preferences(directory: Path) -> Preferences:
    """What the judge said of the run in ``directory``. Raises StorageError where the file is damaged."""
    path = directory / PREFERENCES
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        values = np.array(content["values"], dtype=float)
        return Preferences(values, int(content["disagreements"]), int(content["failures"]))
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{path} is damaged ({error}); remove it and run with --resume") from error


def read_responses(directory: Path, count: int) -> list[str]:
    """The greedy responses of a run, ``count`` of them. Raises StorageError where they are not there whole."""
    path = directory / RESPONSES
    try:
        found = [json.loads(line)["response"] for line in path.read_text(encoding="utf-8").splitlines()]
        if len(found) != count:
            raise ValueError(f"{len(found)} responses to {count} prompts")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{path} is damaged ({error}); remove {RESULT} beside it and run with --resume"
        ) from error
    return found


def stacked(values: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """metric -> [seeds, prompts], for the metrics that every seed has."""
    common = [metric for metric in values[0] if all(metric in each for each in values)]
    return {metric: np.stack([each[metric] for each in values]) for metric in common}
