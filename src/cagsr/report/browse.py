"""Data of the candidates browser: groups of candidates, the parts of their rewards, and their attention.

All text is cut into words here, once, so that the page only has to show pieces: positions in a text mean another
thing to Python than to a browser.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import groupby
from statistics import median
from typing import Any

from cagsr.report.read import Candidate, Run
from cagsr.report.text import Words, is_word, visible
from cagsr.runs.turns import by_role, role_labels

__all__ = ["MOST_CANDIDATES", "browsable", "suspicions"]

MOST_CANDIDATES = 12_000
SMALLEST = 0.03
# Nats that a segment must explain to count as said: the threshold of the signal knockout in every preset.
SAID = 3.0
# Limits beyond which the best response of a group is suspect of reward hacking: repetition, copying, length.
MOST_REPEATED, MOST_COPIED, MOST_LONGER = 0.1, 0.6, 1.6


def browsable(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Data of the browser, one entry a run: its signals and groups, in the short form that ``script.js`` reads.

    A run of very many candidates is thinned evenly over its steps; ``left_out`` says how many groups that cost.
    """
    most = MOST_CANDIDATES // max(len(runs), 1)
    found = []
    for run in runs:
        groups = [list(rows) for _, rows in groupby(run.candidates, lambda row: (row.step, row.prompt_index))]
        stride = max(1, -(-len(run.candidates) // most))
        kept = groups[::stride]
        signals = list(dict.fromkeys(name for row in run.candidates for name in row.signals))
        found.append(
            {
                "name": visible(run.name),
                "signals": [visible(name) for name in signals],
                "left_out": len(groups) - len(kept),
                "said": SAID,
                "groups": [_group(rows, signals) for rows in kept],
            }
        )
    return found


def suspicions(candidate: Candidate, group: Sequence[Candidate]) -> list[str]:
    """Reasons why a high reward of this response may be reward hacking; empty for most."""
    words = candidate.response.split()
    grams = list(zip(words, words[1:], words[2:], strict=False))
    asked = by_role(candidate.prompt, candidate.turns)[0].split()
    in_prompt = set(zip(asked, asked[1:], asked[2:], strict=False))
    usual = median(len(row.response.split()) for row in group)
    found = {
        "empty": not words,
        "repeats itself": bool(grams) and 1 - len(set(grams)) / len(grams) > MOST_REPEATED,
        "copies the prompt": len(grams) > 2
        and sum(gram in in_prompt for gram in grams) / len(grams) > MOST_COPIED,
        "much longer than the others": len(words) > MOST_LONGER * usual > 0,
        "does not end": not candidate.finished,
    }
    return [reason for reason, holds in found.items() if holds]


def _group(rows: list[Candidate], signals: list[str]) -> dict[str, Any]:
    """u: words of the prompt;  c: those that count, by position;  w: candidates, the best first;  g, where its pieces
    are known or a knockout was made: the words of each segment of the prompt;  t: the names of roles, of several turns.
    """
    rows = sorted(rows, key=lambda row: -row.reward)
    first = rows[0]
    text, spans = by_role(first.prompt, first.turns, first.tokens)
    labels = role_labels(first.turns)
    prompt = Words.cut(text, [*spans, *labels])
    entry: dict[str, Any] = {
        "s": first.step,
        "i": first.prompt_index,
        "u": prompt.pieces,
        "c": _that_count(prompt, first.salience),
        "w": [_candidate(row, rows, prompt, signals) for row in rows],
    }
    if labels:
        entry["t"] = [piece for piece in prompt.of[len(spans) :] if piece is not None]
        entry["c"] = [piece for piece in entry["c"] if piece not in entry["t"]]
    for key, of_each in (("d", [row.explained for row in rows]), ("o", [row.looked for row in rows])):
        if first.segments and all(len(values) == len(first.segments) for values in of_each):
            written = [
                {prompt.of[at] for at in segment if 0 <= at < len(prompt.of)} for segment in first.segments
            ]
            entry["g"] = [sorted(piece for piece in pieces if piece is not None) for pieces in written]
            for shown, values in zip(entry["w"], of_each, strict=True):
                shown[key] = [_short(value) for value in values]
    return entry


def _that_count(prompt: Words, salience: list[float]) -> list[int]:
    if not salience:
        return [piece for piece, text in enumerate(prompt.pieces) if is_word(text)]
    weighed = {
        piece
        for piece, weight in zip(prompt.of, salience, strict=False)
        if piece is not None and weight > 0 and is_word(prompt.pieces[piece])
    }
    return sorted(weighed)


def _candidate(row: Candidate, group: list[Candidate], prompt: Words, signals: list[str]) -> dict[str, Any]:
    """r reward, a advantage, x raw signals, p what each added, u words, k attention to each prompt word in percent,
    l for each word ``[prompt word, percent, ...]``, h suspicions, e whether it ended; d, where a knockout was made,
    the nats that each segment explains; o, where pieces are known, how strongly it looked at each."""
    spans = row.attention.response if row.attention else []
    response = Words.cut(row.response, spans)
    looks = _looks(row, response, prompt)
    attended = _attended(row, looks or [], prompt)
    entry: dict[str, Any] = {
        "r": _short(row.reward),
        "a": _short(row.advantage),
        "e": int(row.finished),
        "x": [_short(row.signals.get(name)) for name in signals],
        "p": [_short(row.weighted.get(name)) for name in signals],
        "u": response.pieces,
        "k": [round(100 * value) for value in attended],
        "h": suspicions(row, group),
    }
    if looks is not None:
        entry["l"] = [
            [number for piece, weight in _largest(look) for number in (piece, round(100 * weight))]
            for look in looks
        ]
    return entry


def _looks(row: Candidate, response: Words, prompt: Words) -> list[dict[int, float]] | None:
    """Attention of each word of the response to each word of the prompt; None where it is not known.

    A word has the attention of its most attentive token; a prompt word gets the sum over its tokens.
    """
    if row.attention is None:
        return None
    found: list[dict[int, float]] = [defaultdict(float) for _ in response.pieces]
    for writer, flat in zip(response.of, row.attention.weights, strict=False):
        if writer is None:  # the attention of the end-of-sequence token says nothing
            continue
        at: dict[int, float] = defaultdict(float)
        for token, weight in zip(flat[::2], flat[1::2], strict=False):
            piece = prompt.of[int(token)] if 0 <= token < len(prompt.of) else None
            if piece is not None:
                at[piece] += weight
        for piece, weight in at.items():
            found[writer][piece] = max(found[writer][piece], weight)
    return found


def _largest(look: dict[int, float]) -> Iterable[tuple[int, float]]:
    return sorted(((j, w) for j, w in look.items() if w >= SMALLEST), key=lambda entry: -entry[1])


def _attended(row: Candidate, looks: list[dict[int, float]], prompt: Words) -> list[float]:
    """The strongest attention to each word of the prompt; empty where none was kept.

    Rows of attention have the largest entries only; ``attended`` has every token of the prompt, but each by itself.
    """
    if not (prompt.of and row.attended):
        return []
    found = [
        max((look.get(piece, 0.0) for look in looks), default=0.0) for piece in range(len(prompt.pieces))
    ]
    for piece, weight in zip(prompt.of, row.attended, strict=False):
        if piece is not None:
            found[piece] = max(found[piece], weight)
    return found


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
