"""Preference pairs: a better and a worse response to a prompt, read from a file or data set."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from transformers import PreTrainedTokenizerBase

from cagsr.data import readers as sources
from cagsr.data.data_report import DataReport
from cagsr.data.layouts import CONVERSATIONS, as_messages
from cagsr.data.prompts import demand_whole, encode, map_columns
from cagsr.data.readers import Row
from cagsr.errors import InputError, closest
from cagsr.types import Prompt

__all__ = ["Pair", "encoded_pairs", "pair_rows", "read_pairs"]


@dataclass(frozen=True)
class Pair:
    """A preference pair: two responses to one prompt, of which the first is the better one."""

    prompt: Prompt
    chosen: str
    rejected: str


def pair_rows(source: str, split: str = "train") -> list[Row]:
    """Rows of a file or data set with the columns prompt, chosen and rejected, before they are encoded.

    ``chosen`` and ``rejected`` are texts, or conversations: the prompt's messages in a column of their own or at
    the head of both, one assistant turn after them. The prompt may have any layout that `map_columns` reads. A row
    whose two responses are no text, empty or the same has that as its problem.

    Raises InputError as `readers.read` and `prompts.map_columns` do, and for a missing column.
    """
    rows = sources.read(source, split)
    if not rows:
        raise InputError(f"{source} is empty; name a file whose rows have prompt, chosen and rejected")
    names = {name for row in rows for name in row.values}
    # Conversations may have their prompt at the head of both responses.
    inside = any(isinstance(row.values.get("chosen"), list) for row in rows)
    known = inside or names & {"instruction", *CONVERSATIONS}
    for column in ("chosen", "rejected") if known else ("prompt", "chosen", "rejected"):
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
    source: str, tokenizer: PreTrainedTokenizerBase, *, split: str = "train", **encoding: Any
) -> tuple[list[Pair], DataReport]:
    """Read and encode preference pairs: `pair_rows`, then `encoded_pairs`."""
    return encoded_pairs(pair_rows(source, split), tokenizer, **encoding)


def _texts(row: Row) -> Row:
    """The row with ``chosen`` and ``rejected`` as texts, or with the reason why they cannot be as its problem."""
    values = dict(row.values)
    chosen, rejected = values.get("chosen"), values.get("rejected")
    if values.get("prompt") is None and isinstance(chosen, list) and isinstance(rejected, list):
        alike = takewhile(lambda two: two[0] == two[1], zip(chosen, rejected, strict=False))
        values["prompt"] = [turn for turn, _ in alike]
        turns = len(values["prompt"])
        chosen, rejected = chosen[turns:], rejected[turns:]
    try:
        values["chosen"], values["rejected"] = _text("chosen", chosen), _text("rejected", rejected)
    except ValueError as error:
        return replace(row, values=values, problem=str(error))
    if values["chosen"] == values["rejected"]:
        return replace(row, problem="chosen and rejected are the same text")
    return replace(row, values=values)


def _text(name: str, given: Any) -> str:
    if isinstance(given, dict):
        given = [given]
    if isinstance(given, list):
        if len(given) != 1 or not isinstance(given[0], dict):
            raise ValueError(f"{name} must be one assistant turn after the prompt, got {len(given)}")
        given = as_messages(given)[0].get("content")
    if not isinstance(given, str):
        raise ValueError(f"{name} must be text, got {type(given).__name__}")
    if not given.strip():
        raise ValueError(f"{name} is empty")
    demand_whole(name, given)
    return given
