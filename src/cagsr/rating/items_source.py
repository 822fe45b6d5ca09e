"""Responses to rate: those of a comparison's systems, or the candidates of one run."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from cagsr.errors import InputError, StorageError, closest
from cagsr.io.atomic_write import reading
from cagsr.runs.directory import CANDIDATES
from cagsr.runs.turns import by_role

__all__ = ["Group", "Response", "read_groups"]

RESPONSES = "seed-*/responses.jsonl"
# Candidates of a run are compared by the third of its steps they come from: did training improve them?
PARTS = 3
CANDIDATES_OF_A_GROUP = 2


@dataclass(frozen=True)
class Response:
    """A text, and the systems that wrote it: equal texts of several systems are shown once."""

    text: str
    systems: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """The distinct responses to one prompt, which may be compared; ``shown`` is a conversation as a rater reads it."""

    prompt: str
    responses: tuple[Response, ...]
    shown: str | None = None


def read_groups(directory: Path, systems: Sequence[str] | None, random: Random) -> list[Group]:
    """One group a prompt of the comparison, or of each step of the run, in ``directory``.

    A comparison gives the greedy responses of its systems, with every seed. A run gives two candidates of each
    prompt, drawn by ``random``, whose "systems" are the thirds of its steps. ``systems`` keeps those only.

    Raises InputError where there is neither, or no such system, and StorageError for a line that is damaged.
    """
    found = sorted(directory.glob(f"*/{RESPONSES}"))
    if found:
        groups = _of_comparison(found)
    elif (directory / CANDIDATES).is_file():
        groups = _of_run(directory / CANDIDATES, random)
    else:
        raise InputError(
            f"{directory} has nothing to rate: neither a comparison's SYSTEM/{RESPONSES} nor a run's {CANDIDATES}. "
            "Name a directory that has."
        )
    known = {name for group in groups for response in group.responses for name in response.systems}
    for name in systems or ():
        if name not in known:
            raise InputError(f"--systems: {directory} has no {name!r}{closest(name, known)}")
    chosen = known if systems is None else set(systems)
    return [replace(group, responses=kept) for group in groups if (kept := _only(group, chosen))]


def _only(group: Group, systems: set[str]) -> tuple[Response, ...]:
    kept = ((r.text, tuple(name for name in r.systems if name in systems)) for r in group.responses)
    return tuple(Response(text, names) for text, names in kept if names)


def _of_comparison(paths: Sequence[Path]) -> list[Group]:
    """Groups of a comparison, with every seed: it compares prompts for which all systems and seeds have ratings."""
    written: dict[str, list[tuple[str, str]]] = defaultdict(list)
    shown = {}
    for path in paths:
        for row in _rows(path):
            written[row["prompt"]].append((path.parent.parent.name, row["response"]))
            shown[row["prompt"]] = row["shown"]
    return [_group(prompt, texts, shown[prompt]) for prompt, texts in written.items()]


def _of_run(path: Path, random: Random) -> list[Group]:
    candidates: dict[tuple[int, str], list[str]] = defaultdict(list)
    shown = {}
    for row in _rows(path):
        candidates[row.get("step", 0), row["prompt"]].append(row["response"])
        shown[row["prompt"]] = row["shown"]
    last = max((step for step, _ in candidates), default=0)
    groups = []
    for (step, prompt), texts in candidates.items():
        distinct = sorted(set(texts))
        drawn = random.sample(distinct, min(CANDIDATES_OF_A_GROUP, len(distinct)))
        groups.append(_group(prompt, [(_part(step, last), text) for text in drawn], shown[prompt]))
    return groups


def _part(step: int, last: int) -> str:
    """The name of the third of the steps that ``step`` lies in."""
    ends = [last * part // PARTS for part in range(PARTS + 1)]
    number = next(n for n in range(PARTS) if step <= ends[n + 1])
    return f"steps {ends[number] + 1}-{ends[number + 1]}"


def _group(prompt: str, written: Sequence[tuple[str, str]], shown: str | None) -> Group:
    systems: dict[str, set[str]] = defaultdict(set)
    for system, text in written:
        systems[text].add(system)
    responses = tuple(Response(text, tuple(sorted(names))) for text, names in systems.items())
    return Group(prompt, responses, shown)


def _rows(path: Path) -> list[dict[str, Any]]:
    with reading(path):
        lines = path.read_bytes().split(b"\n")
    rows = []
    # What follows the last line break is nothing, or a row torn by a kill.
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = dict(json.loads(line))
        except (ValueError, TypeError):
            row = {}
        texts = isinstance(row.get("prompt"), str) and isinstance(row.get("response"), str)
        try:
            row["shown"] = by_role(row["prompt"], row["turns"])[0] if texts and row.get("turns") else None
        except (ValueError, TypeError, AttributeError):
            texts = False
        if not (texts and isinstance(row.get("step", 0), int)):
            raise StorageError(f"{path}:{number} is damaged: no row with a prompt and a response.")
        rows.append(row)
    return rows
