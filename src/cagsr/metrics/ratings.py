"""Human ratings of responses, read from a JSONL file."""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cagsr.errors import InputError

__all__ = ["ASPECTS", "Ratings", "read_ratings"]

ASPECTS = ("overall", "relevance", "coherence")
KEYS = ("system", "prompt", "response", "rater")


@dataclass(frozen=True)
class Ratings:
    """Human ratings, 1 to 5 each: (system, prompt) -> response -> aspect -> values."""

    given: Mapping[tuple[str, str], Mapping[str, Mapping[str, list[int]]]]

    def mean(self, system: str, prompt: str, response: str, aspect: str = "overall") -> tuple[float, int]:
        """Mean rating in [1, 5], higher is better, and the number of ratings; (NaN, 0) for a response without any."""
        found = self.given.get((system, prompt), {}).get(response, {}).get(aspect, [])
        return (float(np.mean(found)), len(found)) if found else (float("nan"), 0)

    def of_other_responses(self, system: str, prompt: str, response: str) -> int:
        """The number of ratings of this system and prompt that were given to another response than this one."""
        others = self.given.get((system, prompt), {})
        return sum(len(aspects["overall"]) for text, aspects in others.items() if text != response)


def read_ratings(path: str | Path) -> Ratings:
    """Read ratings from JSONL: system, prompt, response, rater, and relevance, coherence, overall from 1 to 5.

    A rater's later rating of the same response replaces the earlier one. Raises InputError with the line of a row
    that is no rating, and where the file is missing or has none.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise InputError(f"metrics.ratings: {path} cannot be read: {error}") from error
    latest: dict[tuple[str, str, str, str], dict[str, int]] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            row = _row(line, f"{path}:{number}")
            latest[tuple(row[key] for key in KEYS)] = {aspect: row[aspect] for aspect in ASPECTS}  # type: ignore[index]
    if not latest:
        raise InputError(f"metrics.ratings: {path} has no rating; name a file with one a line")
    given: dict[tuple[str, str], dict[str, dict[str, list[int]]]] = defaultdict(dict)
    for (system, prompt, response, _), values in latest.items():
        aspects = given[system, prompt].setdefault(response, {aspect: [] for aspect in ASPECTS})
        for aspect, value in values.items():
            aspects[aspect].append(value)
    return Ratings(given)


def _row(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: not JSON ({error})") from error
    if not isinstance(row, dict):
        raise InputError(f"{place}: expected an object with {', '.join((*KEYS, *ASPECTS))}")
    for key in KEYS:
        if not isinstance(row.get(key), str):
            raise InputError(f"{place}: {key!r} must be text, got {row.get(key)!r}")
    for aspect in ASPECTS:
        value = row.get(aspect)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 5:
            raise InputError(f"{place}: {aspect!r} must be a whole number from 1 to 5, got {value!r}")
    return row
