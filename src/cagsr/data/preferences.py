"""Preference pairs, a chosen and a rejected response to one prompt: labelled by people, or made without labels."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from transformers import PreTrainedTokenizerBase

from cagsr.data import readers as sources
from cagsr.data.prompts import DataReport, demand_whole, encode, map_columns
from cagsr.data.readers import Row
from cagsr.data.words import text_words
from cagsr.errors import InputError, closest
from cagsr.types import Prompt

__all__ = ["Pair", "best_against_worst", "degraded", "encoded_pairs", "pair_rows", "read_pairs"]

# A clause begins with what joins it to the one before it.
CLAUSE = re.compile(r"\s*[,;.!?]\s+|\s+(?:and|but|while|with)\s+")
JOINER = re.compile(rf"(?:{CLAUSE.pattern})+")
CLOSING = re.compile(r"[\s,;.!?]*\Z")
LONGEST_SWAP = 3


@dataclass(frozen=True)
class Pair:
    """A preference pair: two responses to one prompt, of which the first is the better one."""

    prompt: Prompt
    chosen: str
    rejected: str


# Pairs from people -----------------------------------------------------------------------------------------------


def pair_rows(
    source: str, *, split: str = "train", config_name: str | None = None, revision: str | None = None
) -> list[Row]:
    """Rows of a file or data set with the columns prompt, chosen and rejected, before they are encoded.

    ``chosen`` and ``rejected`` are texts, or conversations: the prompt's messages in a column of their own or at
    the head of both, one assistant turn after them. A row whose two responses are no text, empty or the same has
    that as its problem.

    Raises InputError as `readers.read` and `prompts.map_columns` do, and for a missing column.
    """
    rows = sources.read(source, split, config_name, revision)
    if not rows:
        raise InputError(f"{source} is empty; name a file whose rows have prompt, chosen and rejected")
    names = {name for row in rows for name in row.values}
    conversations = any(isinstance(row.values.get("chosen"), list) for row in rows)
    for column in ("chosen", "rejected") if conversations else ("prompt", "chosen", "rejected"):
        if names and column not in names:
            raise InputError(f"{source}: no {column!r} column{closest(column, names)}")
    return map_columns([row if row.problem else _texts(row) for row in rows])


def encoded_pairs(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, **encoding: Any
) -> tuple[list[Pair], DataReport]:
    """Encode the rows of `pair_rows`; returns the pairs and a report on every row. ``encoding`` is handed to
    `prompts.encode`.

    Raises InputError as that does.
    """
    prompts, report = encode(rows, tokenizer, **encoding)
    return [Pair(prompt, prompt.row["chosen"], prompt.row["rejected"]) for prompt in prompts], report


def read_pairs(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    split: str = "train",
    config_name: str | None = None,
    revision: str | None = None,
    **encoding: Any,
) -> tuple[list[Pair], DataReport]:
    """Read and encode preference pairs: `pair_rows`, then `encoded_pairs`."""
    rows = pair_rows(source, split=split, config_name=config_name, revision=revision)
    return encoded_pairs(rows, tokenizer, **encoding)


def _texts(row: Row) -> Row:
    """The row with ``chosen`` and ``rejected`` as texts, or with the reason why they cannot be as its problem."""
    values = dict(row.values)
    chosen, rejected = values.get("chosen"), values.get("rejected")
    if values.get("prompt") is None and isinstance(chosen, list) and isinstance(rejected, list):
        values["prompt"] = [turn for turn, other in zip(chosen, rejected, strict=False) if turn == other]
        turns = len(values["prompt"])
        chosen, rejected = chosen[turns:], rejected[turns:]
    try:
        values["chosen"], values["rejected"] = _text("chosen", chosen), _text("rejected", rejected)
    except ValueError as error:
        return replace(row, problem=str(error))
    if values["chosen"] == values["rejected"]:
        return replace(row, problem="chosen and rejected are the same text")
    return replace(row, values=values)


def _text(name: str, given: Any) -> str:
    if isinstance(given, list):
        if len(given) != 1 or not isinstance(given[0], dict):
            raise ValueError(f"{name} must be one assistant turn after the prompt, got {len(given)}")
        given = given[0].get("content")
    if not isinstance(given, str):
        raise ValueError(f"{name} must be text, got {type(given).__name__}")
    if not given.strip():
        raise ValueError(f"{name} is empty")
    demand_whole(name, given)
    return given


# Pairs without labels --------------------------------------------------------------------------------------------


def best_against_worst(
    prompt: Prompt, candidates: Sequence[str], judge: Callable[[Prompt, Sequence[str]], Sequence[float]]
) -> Pair | None:
    """The pair of the candidate that ``judge`` rates highest and the one it rates lowest; None where all are equal.

    ``judge(prompt, candidates)`` gives one number a candidate, higher is better. Of equals the first is taken.
    Raises ValueError when it gives another number of numbers.
    """
    scores = list(judge(prompt, candidates))
    if len(scores) != len(candidates):
        raise ValueError(f"the judge gave {len(scores)} scores for {len(candidates)} candidates")
    best, worst = scores.index(max(scores)), scores.index(min(scores))
    if scores[best] == scores[worst] or candidates[best] == candidates[worst]:
        return None
    return Pair(prompt, candidates[best], candidates[worst])


def degraded(prompt: str, answer: str, others: Sequence[str], random: Random) -> tuple[str, str]:
    """``answer`` and a corrupted copy of it, a better and a worse response without a judge: it is made worse in one
    way.

    A clause is left out, said twice, or another of ``others``' clauses put in; or a few words give way to words of
    another answer, words that stand in the ``prompt`` first. Which way, and where, ``random`` decides. The first of
    several clauses stays: without it a text is known for worse by how it opens, whatever it says. Both texts are
    the same where no way changes anything: an empty answer, one without another clause or other words.
    """
    if not text_words(answer):
        return answer, answer
    clauses, closing = _clauses(answer)
    foreign = [other for other in others if other != answer and other.strip()]
    other = random.choice(foreign) if foreign else ""
    for worsen in random.sample((_dropped, _doubled, _mixed, _swapped), 4):
        worse = "".join(worsen(prompt, clauses, other, random))
        if worse != "".join(clauses):
            return answer, worse + closing
    return answer, answer


def _clauses(text: str) -> tuple[list[str], str]:
    """The clauses of a text, each with what joins it to the one before, and how the text closes."""
    closing = CLOSING.search(text)
    end = closing.start() if closing else len(text)
    cuts = [found.start() for found in JOINER.finditer(text, 0, end) if found.start() > 0]
    return [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, end], strict=True)], text[end:]


def _dropped(prompt: str, clauses: list[str], other: str, random: Random) -> list[str]:
    if len(clauses) < 2:
        return clauses
    gone = random.randrange(1, len(clauses))
    return [*clauses[:gone], *clauses[gone + 1 :]]


def _doubled(prompt: str, clauses: list[str], other: str, random: Random) -> list[str]:
    said = random.randrange(min(1, len(clauses) - 1), len(clauses))
    again = random.randrange(said, len(clauses)) + 1
    return [*clauses[:again], _joined(clauses[said]), *clauses[again:]]


def _mixed(prompt: str, clauses: list[str], other: str, random: Random) -> list[str]:
    own = {tuple(text_words(clause)) for clause in clauses}
    candidates = _clauses(other)[0]
    strange = [clause for clause in candidates[1:] or candidates if tuple(text_words(clause)) not in own]
    if not strange:
        return clauses
    place = random.randrange(len(clauses)) + 1
    return [*clauses[:place], _joined(random.choice(strange)), *clauses[place:]]


def _swapped(prompt: str, clauses: list[str], other: str, random: Random) -> list[str]:
    text, strange = "".join(clauses), other.split()
    words = list(re.finditer(r"\S+", text))
    asked, own, theirs = (set(text_words(each)) for each in (prompt, text, other))
    # Words that both answers use are how answers are written; the others are what they say.
    said = [(n, keys) for n, word in enumerate(words) if (keys := set(text_words(word.group()))) - theirs]
    starts = [n for n, word in enumerate(strange) if set(text_words(word)) - own]
    if not said or not starts:
        return clauses
    place = random.choice([n for n, keys in said if keys & asked] or [n for n, _ in said])
    start, length = random.choice(starts), random.randint(1, LONGEST_SWAP)
    last = min(place + length, len(words)) - 1
    # Punctuation taken along would give the swap away.
    taken = [word for word in strange[start : start + length] if text_words(word)]
    return [text[: words[place].start()], " ".join(taken).rstrip(",;.!?"), text[words[last].end() :]]


def _joined(clause: str) -> str:
    return clause if JOINER.match(clause) else f", {clause}"
