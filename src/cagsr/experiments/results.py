"""Results of measured runs: on the disk (``result.json``, ``preferences.json``) and of all systems together."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from cagsr.errors import StorageError
from cagsr.io.atomic_write import write_atomically
from cagsr.metrics.judge import Preferences
from cagsr.runs.directory import RESPONSES

__all__ = ["PREFERENCES", "RESULT", "Result", "Results", "read_kept", "read_responses", "write_kept"]

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
    not_measured: dict[str, str] = field(default_factory=dict)


Kept = TypeVar("Kept", Result, Preferences)


def read_kept(path: Path, kind: type[Kept]) -> Kept:
    """The `Result` or `Preferences` that `write_kept` wrote. Raises StorageError where the file is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return kind(**{name: _with_arrays(value) for name, value in content.items()})
    except (ValueError, AttributeError, TypeError) as error:
        raise StorageError(f"{path} is damaged ({error}); remove it and run with --resume") from error


def _with_arrays(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_arrays(inner) for name, inner in value.items()}
    return np.array(value, dtype=float) if isinstance(value, list) else value


def write_kept(path: Path, kept: Result | Preferences) -> None:
    """Write it as JSON, where NaN is null: nobody had an opinion. Raises StorageError."""

    def numbers(values: np.ndarray) -> list[float | None]:
        return [None if np.isnan(one) else one for one in values.tolist()]

    write_atomically(path, json.dumps(vars(kept), default=numbers, allow_nan=False) + "\n")


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

    def stacked(self, name: str, part: str) -> dict[str, np.ndarray]:
        """A part of a system's results (`Result`): metric -> [seeds, prompts], of the metrics that every seed has."""
        values = [getattr(result, part) for result in self.found[name]]
        common = [metric for metric in values[0] if all(metric in each for each in values)]
        return {metric: np.stack([each[metric] for each in values]) for metric in common}

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
