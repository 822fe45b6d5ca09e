"""Results of measured runs: on the disk (``result.json``, ``preferences.json``) and of all systems together."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cagsr.errors import StorageError
from cagsr.io.atomic_write import write_atomically
from cagsr.metrics.judge import Preferences
from cagsr.runs.directory import RESPONSES

__all__ = [
    "PREFERENCES",
    "RESULT",
    "Result",
    "Results",
    "read_preferences",
    "read_responses",
    "read_result",
    "write_preferences",
    "write_result",
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


def write_result(directory: Path, result: Result) -> None:
    """Raises StorageError."""
    content = {
        "greedy": {metric: value.tolist() for metric, value in result.greedy.items()},
        "sampled": {metric: value.tolist() for metric, value in result.sampled.items()},
        "opinions": {metric: _as_json(value) for metric, value in result.opinions.items()},
        "cost": result.cost,
        "not_measured": result.not_measured,
    }
    write_atomically(directory / RESULT, json.dumps(content, allow_nan=False) + "\n")


def _as_json(values: np.ndarray) -> list[float | None]:
    """Numbers as JSON has them: None where nobody had an opinion."""
    return [None if np.isnan(one) else one for one in values.tolist()]


def write_preferences(directory: Path, said: Preferences) -> None:
    """Raises StorageError."""
    content = {
        "values": _as_json(said.values),
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


@dataclass
class Results:
    """Results of all systems: system -> one of each seed, in the order of the seeds.

    found      what was measured
    preferred  what a pairwise judge said of the responses beside the base's; empty without such a judge
    warnings   rows of metrics.jsonl with a warning, each with its seed
    """

    found: dict[str, list[Result]] = field(default_factory=dict)
    preferred: dict[str, list[Preferences]] = field(default_factory=dict)
    warnings: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def drop(self, name: str) -> None:
        self.found.pop(name, None)
        self.preferred.pop(name, None)

    def greedy(self, name: str) -> dict[str, np.ndarray]:
        """metric -> [seeds, P]"""
        return _stacked([result.greedy for result in self.found[name]])

    def sampled(self, name: str) -> dict[str, np.ndarray]:
        """metric -> [seeds, Q]; empty for a system that does not sample."""
        return _stacked([result.sampled for result in self.found[name]])

    def opinions(self, name: str) -> dict[str, np.ndarray]:
        """metric -> [seeds, P], NaN where nobody had one."""
        return _stacked([result.opinions for result in self.found[name]])

    def preferences(self, name: str) -> Preferences:
        """values [seeds P]: 1 where the judge preferred the system's response to the base's; counts over all seeds."""
        said = self.preferred[name]
        return Preferences(
            np.stack([one.values for one in said]),
            sum(one.disagreements for one in said),
            sum(one.failures for one in said),
        )

    def cost(self, name: str) -> dict[str, float]:
        """Means over seeds of what all have: seconds, tokens, labels; what was asked of a judge and of people."""
        costs = [result.cost for result in self.found[name]]
        common = [key for key in costs[0] if all(key in cost for cost in costs)]
        return {key: round(float(np.mean([cost[key] for cost in costs])), 1) for key in common}


def _stacked(values: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """metric -> [seeds, prompts], for the metrics that every seed has."""
    common = [metric for metric in values[0] if all(metric in each for each in values)]
    return {metric: np.stack([each[metric] for each in values]) for metric in common}
