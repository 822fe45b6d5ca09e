"""Encoding of data rows as prompts: column mapping, tokenization and length limits."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

from transformers import PreTrainedTokenizerBase

from cagsr.config.schema import Data
from cagsr.data.chat_template import last_exchange, messages_of
from cagsr.data.column_hints import demand_column, suggest_reference
from cagsr.data.data_report import DataReport
from cagsr.data.layouts import CONVERSATIONS, as_messages, recognised, refuse_written_conversation
from cagsr.data.make_prompt import SpecialTokens, demand_whole, make_prompt, no_position
from cagsr.data.readers import Row
from cagsr.data.remarks import Remarks
from cagsr.data.truncation import truncated
from cagsr.errors import InputError
from cagsr.types import Prompt

__all__ = ["Overlong", "Reads", "demand_fast", "encode", "encoding", "map_columns", "refuse_invalid"]

Overlong = Literal["error", "drop", "truncate_left", "truncate_right"]


def map_columns(
    rows: Sequence[Row],
    prompt_column: str = "prompt",
    reference_column: str | None = None,
    salience_column: str | None = None,
    need_reference: bool = False,
) -> list[Row]:
    """Map the columns of rows: ``prompt`` is then a text or a list of messages, and ``reference``, if any, a text.

    Without a column ``prompt``, a layout that is `recognised` is used, ``messages`` for one: all turns up to the last
    of the user or of a tool are the prompt, the last assistant turn after it is the reference. In any other column
    every message is of the prompt, and a turn of the assistant at its end is one that the response continues.

    Without ``reference_column``, ``reference`` or ``completion`` is used where a row has it as text. Other columns stay
    as they are. A row whose prompt, or whose demanded reference, is missing or not text keeps that as its problem; so
    does one with half a character.

    Raises InputError when there are no rows, and when no row has a named column, with a suggestion.
    """
    if not rows:
        raise InputError("the data set is empty: no rows to use. Name another data.source or data.split.")
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    if names:
        rows, prompt_column = recognised(rows, names, prompt_column)
        demand_column(rows, "prompt", prompt_column)
        for kind, column in (("reference", reference_column), ("salience", salience_column)):
            if column is not None:
                demand_column(rows, kind, column)
    demanded = need_reference or reference_column is not None
    if need_reference and reference_column is None and prompt_column == "prompt":
        suggest_reference(rows)
    columns = (reference_column,) if reference_column else ("reference", "completion")
    return [row if row.problem else _mapped(row, prompt_column, columns, demanded) for row in rows]


def refuse_invalid(rows: Sequence[Row], skip_invalid: bool = False) -> None:
    """Refuse, before a tokenizer is loaded, what `encode` would refuse: rows with a problem, or nothing but such.

    Raises InputError, as `encode` does.
    """
    invalid = [f"{row.place}: {row.problem}." for row in rows if row.problem]
    DataReport(rows=len(rows), used=len(rows) - len(invalid), invalid=invalid).check(skip_invalid)


def _mapped(row: Row, prompt_column: str, reference_columns: tuple[str, ...], demanded: bool) -> Row:
    values: dict[str, Any] = dict(row.values)
    if prompt_column not in values:
        return replace(row, problem=f"no {prompt_column!r}")
    prompt, reply = values[prompt_column], None
    try:
        if isinstance(prompt, list):
            whole, given_turns = prompt_column in CONVERSATIONS, as_messages(prompt)
            prompt, reply = last_exchange(given_turns) if whole else (messages_of(given_turns), None)
        elif not isinstance(prompt, str):
            raise ValueError(f"prompt must be text, got {_shown(prompt)}")
        elif not prompt.strip():
            raise ValueError("prompt is empty")
        else:
            refuse_written_conversation(prompt_column, prompt)
        given = next((values[name] for name in reference_columns if values.get(name) is not None), reply)
        if isinstance(given, list) and given and all(isinstance(turn, dict) for turn in given):
            given = as_messages(given)[-1].get("content")
        demand_whole(
            "prompt", prompt if isinstance(prompt, str) else "".join(turn["content"] for turn in prompt)
        )
        if isinstance(given, str):
            demand_whole("reference", given)
        if demanded and not isinstance(given, str):
            raise ValueError(f"reference must be text, got {_shown(given)}{_begun(prompt)}")
        if demanded and not str(given).strip():
            raise ValueError("reference is empty")
    except ValueError as error:
        return replace(row, problem=str(error))
    values["prompt"] = prompt
    if isinstance(given, str):
        values["reference"] = given
    return replace(row, values=values)


def _begun(prompt: Any) -> str:
    if isinstance(prompt, str) or prompt[-1]["role"] != "assistant":
        return ""
    return (
        "; the assistant's last turn is part of the prompt, which the reference would continue: "
        "conversations with their answer belong into a column 'messages'"
    )


class Reads(Protocol):
    """Protocol of what encoding needs to know of a policy; see `models.policy.Policy`."""

    tokenizer: PreTrainedTokenizerBase
    skipped: int | None

    @property
    def context(self) -> int | None: ...
    def response_positions(self, new_tokens: int) -> int: ...
    def check_length(self, tokens: int, key: str) -> None: ...
    def encode(self, responses: list[str]) -> list[list[int]]: ...


def encoding(reader: Reads, data: Data, new_tokens: int) -> dict[str, Any]:
    """Keyword arguments of `encode` for a policy and the ``data`` section, with responses of ``new_tokens``."""
    return {
        "tokenizer": reader.tokenizer,
        "max_prompt_tokens": data.max_prompt_tokens,
        "overlong": data.overlong,
        "skip_invalid": data.skip_invalid,
        "context": reader.context,
        "new_tokens": reader.response_positions(new_tokens),
        "chat_template_kwargs": data.chat_template_kwargs,
        "special_tokens": data.special_tokens,
        "goes_on": reader.response_positions(1) > 0,
        "skipped": reader.skipped,
    }


def encode(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prompt_tokens: int | None = None,
    overlong: Overlong = "error",
    skip_invalid: bool = False,
    distinct: bool = False,
    context: int | None = None,
    new_tokens: int = 0,
    new_tokens_key: str = "sampling.max_new_tokens",
    chat_template_kwargs: Mapping[str, Any] | None = None,
    special_tokens: SpecialTokens = "text",
    goes_on: bool = False,
    skipped: int | None = None,
) -> tuple[list[Prompt], DataReport]:
    """Encode the mapped ``rows`` as prompts, in their order; also returns a report on every row.

    ``context`` is what prompt and ``new_tokens`` must fit into together (encoder-decoders: the encoder's
    context, and 0); ``new_tokens_key`` is where the user set that. With ``distinct`` a prompt that several rows
    have is encoded once, for the first of them. ``index`` of a prompt is its place in ``rows``, whatever was
    dropped before it. A row's own ``chat_template_kwargs`` win over these; ``special_tokens`` and ``goes_on`` are as
    of `make_prompt`. A row with the token ``skipped``, which the model counts no position for, is bad.

    Raises InputError with one line for each bad row (unless ``skip_invalid``) or overlong row (unless
    ``overlong`` allows it), and when no row is left.
    """
    demand_fast(tokenizer)
    limit = _limit(max_prompt_tokens, context, new_tokens, new_tokens_key)
    notes = list(dict.fromkeys(note for row in rows for note in row.notes))
    report, prompts, refused = DataReport(rows=len(rows), notes=notes), [], []
    how = {"template": chat_template_kwargs, "special_tokens": special_tokens, "goes_on": goes_on}
    remarks = Remarks(tokenizer, special_tokens, goes_on)
    for index, row in _counted(rows, report, distinct):
        try:
            prompt = make_prompt(row, index, tokenizer, **how)
            if skipped in prompt.ids:
                raise ValueError(f"prompt has {no_position(skipped)}")
        except ValueError as error:
            report.invalid.append(f"{row.place}: {error}.")
            continue
        remarks.add(prompt, row.place)
        if limit is not None and len(prompt.ids) > limit and overlong == "error":
            too_long = _too_long(len(prompt.ids), max_prompt_tokens, context, new_tokens)
            refused.append(f"{row.place}: {too_long}")
        else:
            prompts += _fitted(prompt, limit, overlong, report)
    report.used, report.remarks = len(prompts), remarks.warnings() + remarks.notes()
    report.check(skip_invalid, refused)
    return prompts, report


def _counted(rows: Sequence[Row], report: DataReport, distinct: bool) -> Iterator[tuple[int, Row]]:
    """The rows to encode and their places: duplicates are counted, and with ``distinct`` a prompt comes once."""
    contents, asked = set[int](), set[str]()
    for index, row in enumerate(rows):
        if not row.problem:
            content = hash(repr(row.values))
            report.duplicates += content in contents
            contents.add(content)
            # Two prompts are the same by their text or messages and what they are rendered with.
            options = [row.values[name] for name in ("tools", "chat_template_kwargs") if row.values.get(name)]
            prompt = str(row.values["prompt"]) + (repr(options) if options else "")
            if row.weight is not None:  # a data set has its share, whatever another one has too
                prompt = f"{row.part} {prompt}"
            if distinct and prompt in asked:
                report.repeated += 1
                continue
            asked.add(prompt)
        yield index, row


def _fitted(prompt: Prompt, limit: int | None, overlong: Overlong, report: DataReport) -> list[Prompt]:
    """The prompt as it is, truncated to the limit, or none; what was done is counted."""
    if limit is None or len(prompt.ids) <= limit:
        return [prompt]
    cut = None if overlong == "drop" else truncated(prompt, limit, overlong == "truncate_left")
    report.overlong += cut is None
    report.truncated += cut is not None
    return [] if cut is None else [cut]


def demand_fast(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise InputError for a tokenizer that gives no character offsets of its tokens (one that is not fast)."""
    if not tokenizer.is_fast:
        raise InputError(
            f"{tokenizer.name_or_path or 'the tokenizer'} is a slow tokenizer, which does not tell which "
            "characters a token stands for. Use its fast version (tokenizer.json)."
        )


def _limit(
    max_prompt_tokens: int | None, context: int | None, new_tokens: int, new_tokens_key: str
) -> int | None:
    if context is not None and context <= new_tokens:
        raise InputError(
            f"{new_tokens} new tokens leave no room for a prompt in {context} context. "
            f"Lower {new_tokens_key}."
        )
    limits = [max_prompt_tokens, None if context is None else context - new_tokens]
    return min((limit for limit in limits if limit is not None), default=None)


def _too_long(tokens: int, max_prompt_tokens: int | None, context: int | None, new_tokens: int) -> str:
    ways = "set data.overlong to drop, truncate_left or truncate_right."
    if max_prompt_tokens is not None and tokens > max_prompt_tokens:
        return f"{tokens} prompt tokens > {max_prompt_tokens} data.max_prompt_tokens. Raise it, or {ways}"
    return f"{tokens} prompt + {new_tokens} new tokens > {context} context. Set data.max_prompt_tokens, and {ways}"


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    return {dict: "a mapping", list: "a list"}.get(type(value), type(value).__name__)
