"""Export of ratings: means and preferences of systems, agreement of raters, and files for other commands.

``ratings.jsonl`` is what ``metrics.ratings`` reads, ``pairs.jsonl`` what ``compare.preferences`` and
``cagsr calibrate --pairs`` read. Attention checks are in neither.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import krippendorff
import numpy as np

from cagsr.errors import InputError, closest
from cagsr.io.atomic_write import write_atomically
from cagsr.metrics.bootstrap import interval
from cagsr.rating.items import QUESTIONS, Item, Mode, passed
from cagsr.rating.store import Store

__all__ = ["PAIRS", "RATINGS", "alpha", "export"]

RATINGS, PAIRS = "ratings.jsonl", "pairs.jsonl"

Answers = Mapping[tuple[int, str], int]


@dataclass(frozen=True)
class _Said:
    """Answers in one mode: its items, rater -> answers to items answered in full, and rater -> number of others."""

    items: Sequence[Item]
    answers: Mapping[str, Answers]
    begun: Mapping[str, int]

    def rated(self) -> list[tuple[int, Item]]:
        return [(number, item) for number, item in enumerate(self.items) if item.check is None]


def export(store: Store, output: Path, raters: Sequence[str] | None = None) -> dict[str, Any]:
    """Export the ratings to ``output`` and return the summary; of these ``raters`` only, if they are named.

    Raises InputError for a name that never rated, where nobody rated, and for a file that no export wrote.
    """
    known = store.raters()
    for name in raters or ():
        if name not in known:
            raise InputError(f"--raters: nobody called {name!r} rated here{closest(name, known)}")
    said: dict[Mode, _Said] = {}
    for mode in QUESTIONS:
        if (study := store.study(mode)) is not None:
            given = {name: store.answers(name, mode) for name in raters or known}
            said[mode] = _said(mode, study.items, {name: found for name, found in given.items() if found})
    if not any(each.answers for each in said.values()):
        whose = ", ".join(raters or known) or "anybody"
        raise InputError(f"{store.path} has no answer of {whose} yet. Start with --raters NAME,NAME.")
    rows = [row for mode, each in said.items() if mode == "scores" for row in _ratings(each)]
    pairs, left_out = _preferences(said)
    files = {RATINGS: rows, PAIRS: pairs}
    written = [_write(store, output / name, content) for name, content in files.items() if content]
    return {
        "systems": {mode: _systems(mode, each) for mode, each in said.items()},
        "agreement": {mode: _agreement(mode, each) for mode, each in said.items()},
        "raters": {mode: _raters(each) for mode, each in said.items()},
        "begun": {mode: dict(each.begun) for mode, each in said.items()},
        "ratings": len(rows),
        "pairs": len(pairs),
        "pairs_left_out": left_out,
        "files": [str(path) for path in written],
    }


def _said(mode: Mode, items: Sequence[Item], given: Mapping[str, Answers]) -> _Said:
    full, begun = {}, {}
    for rater, answers in given.items():
        touched = {number for number, _ in answers}
        done = {n for n in touched if all((n, question) in answers for question in QUESTIONS[mode])}
        full[rater] = {(n, question): value for (n, question), value in answers.items() if n in done}
        begun[rater] = len(touched - done)
    return _Said(items, full, begun)


def _write(store: Store, path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    try:
        before = path.read_bytes()
    except FileNotFoundError:
        before = None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    if before is not None and not store.exported(before):
        raise InputError(
            f"{path} was not written by cagsr rate, or was changed since; choose another --output."
        )
    # Recorded before it is written: a kill in between leaves a file that the next export may replace.
    store.add_export(text.encode())
    write_atomically(path, text)
    return path


# Ratings ----------------------------------------------------------------------------------------------------------


def _ratings(said: _Said) -> list[dict[str, Any]]:
    """One row for each rating and each system that wrote the response."""
    rows = []
    for rater, answers in said.answers.items():
        for number, item in said.rated():
            values = {question: answers.get((number, question)) for question in QUESTIONS["scores"]}
            if None in values.values():
                continue
            response = item.responses[0]
            for system in response.systems:
                who = {"system": system, "prompt": item.prompt, "response": response.text, "rater": rater}
                rows.append(who | values)
    return rows


def _systems(mode: Mode, said: _Said) -> dict[str, dict[str, Any]]:
    """system -> question -> mean over prompts with its 95 % interval, each prompt the mean over its ratings.

    A preference becomes ``won``, the share in [0, 1] of comparisons with other systems; a tie is half of one.
    """
    found: dict[str, dict[str, dict[str, list[float]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for answers in said.answers.values():
        for number, item in said.rated():
            for question in QUESTIONS[mode]:
                if (value := answers.get((number, question))) is None:
                    continue
                if mode == "scores":
                    for system in item.responses[0].systems:
                        found[system][question][item.prompt].append(value)
                    continue
                first, second = (set(response.systems) for response in item.responses)
                for system in first ^ second:
                    won = (1 + value) / 2 if system in first else (1 - value) / 2
                    found[system]["won"][item.prompt].append(won)
    return {
        system: {
            name: interval(np.array([np.mean(values) for values in of_prompts.values()])).as_dict()
            | {"prompts": len(of_prompts), "ratings": sum(map(len, of_prompts.values()))}
            for name, of_prompts in questions.items()
        }
        for system, questions in sorted(found.items())
    }


def _agreement(mode: Mode, said: _Said) -> dict[str, dict[str, float | int | None]]:
    found: dict[str, dict[str, float | int | None]] = {}
    for question in QUESTIONS[mode]:
        ratings = {
            rater: {n: answers[n, question] for n, _ in said.rated() if (n, question) in answers}
            for rater, answers in said.answers.items()
        }
        value, items = alpha(ratings)
        found[question] = {"alpha": value, "items": items}
    return found


def alpha(ratings: Mapping[str, Mapping[int, int]]) -> tuple[float | None, int]:
    """Krippendorff's alpha for ordinal values, and the number of items that two raters or more have rated.

    ``ratings`` are rater -> item -> value. 1 is perfect agreement, 0 what chance gives, below 0 worse; None where
    it is not defined: no item with two ratings, or one and the same value everywhere.

    Source: Krippendorff, Content Analysis, 4th edition, 2019, chapter 12; computed by the package ``krippendorff``.
    """
    items = sorted({item for given in ratings.values() for item in given})
    table = np.array([[given.get(item, np.nan) for item in items] for given in ratings.values()], dtype=float)
    shared = table[:, (~np.isnan(table)).sum(0) >= 2] if table.size else table
    values = np.unique(shared[~np.isnan(shared)])
    if len(values) < 2:
        return None, shared.shape[1] if shared.ndim == 2 else 0
    return float(krippendorff.alpha(shared, level_of_measurement="ordinal")), shared.shape[1]


def _raters(said: _Said) -> dict[str, dict[str, int]]:
    """Number of items that each rater answered in full, and of checks of each kind that they met and passed."""
    found: dict[str, dict[str, int]] = {}
    for rater, answers in said.answers.items():
        complete = sorted({number for number, _ in answers})
        row = {"items": len(said.items), "done": len(complete)}
        for kind in ("foreign", "repeated"):
            numbers = [n for n in complete if said.items[n].check == kind]
            results = [result for n in numbers if (result := passed(said.items, n, answers)) is not None]
            row |= {kind: len(results), f"{kind}_passed": sum(results)}
        found[rater] = row
    return found


# Preferences ------------------------------------------------------------------------------------------------------


def _preferences(said: Mapping[Mode, _Said]) -> tuple[list[dict[str, Any]], int]:
    """Pairs that more raters order one way than the other, and how many are left out as ties or empty texts.

    A rater's vote is a preference, or the order of two overall scores for the same prompt; the first where a
    rater gave both.
    """
    votes: dict[tuple[str, str, str], dict[str, int]] = defaultdict(dict)
    for mode, each in said.items():
        for rater, answers in each.answers.items():
            for prompt, first, second, value in _COMPARED[mode](each, answers):
                (a, b), sign = ((first, second), 1) if first < second else ((second, first), -1)
                votes[prompt, a, b][rater] = sign * value
    pairs, left_out = [], 0
    for (prompt, a, b), given in votes.items():
        total = sum(given.values())
        chosen, rejected = (a, b) if total > 0 else (b, a)
        if total == 0 or not (chosen.strip() and rejected.strip()):
            left_out += 1
            continue
        agreed = sum(value * total > 0 for value in given.values())
        pairs.append(
            {"prompt": prompt, "chosen": chosen, "rejected": rejected, "raters": len(given), "agreed": agreed}
        )
    return pairs, left_out


def _by_choice(said: _Said, answers: Answers) -> Iterable[tuple[str, str, str, int]]:
    for number, item in said.rated():
        if (value := answers.get((number, "preference"))) is not None:
            first, second = item.responses
            yield item.prompt, first.text, second.text, value


def _by_scores(said: _Said, answers: Answers) -> Iterable[tuple[str, str, str, int]]:
    scores: dict[str, dict[str, int]] = defaultdict(dict)
    for number, item in said.rated():
        if (value := answers.get((number, "overall"))) is not None:
            scores[item.prompt][item.responses[0].text] = value
    for prompt, of_texts in scores.items():
        for (first, one), (second, other) in combinations(of_texts.items(), 2):
            yield prompt, first, second, (one > other) - (one < other)


# A preference comes after, and so replaces, what the scores of the same rater say of the same two texts.
_COMPARED = {"scores": _by_scores, "pairs": _by_choice}
