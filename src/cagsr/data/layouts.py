"""Layouts of published data sets, as prompts and messages: Alpaca columns, ShareGPT turns, OpenAI parts."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cagsr.data.file_formats import Row

__all__ = ["CONVERSATIONS", "as_messages", "left_out", "recognised", "refuse_written_conversation"]

# Columns of conversations, read where there is no column "prompt".
CONVERSATIONS = ("messages", "conversations")
ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
}
TEXT_PARTS = ("text", "input_text", "output_text")
# What goes with a question or an instruction, in data sets that keep the two apart.
CONTEXTS = ("input", "context", "passage")
WRITTEN = re.compile(r"""\s*\[\s*\{\s*['"](role|content|from|value)['"]\s*:""")


def recognised(rows: Sequence[Row], names: Sequence[str], prompt_column: str) -> tuple[list[Row], str]:
    """Rows, and the column that holds their prompts: ``prompt_column``, or that of a layout where there is none.

    Without a column ``prompt``: ``messages``; ``conversations`` (ShareGPT; a column ``system`` becomes its first
    turn); or the Alpaca columns, which give ``prompt`` (instruction, then, after a blank line, what ``input`` or
    ``context`` holds) and ``completion`` (output). The last two are a note of the rows.
    """
    if prompt_column == "instruction" and (context := left_out(prompt_column, names)):
        note = f"{context!r} is no part of the prompt; leave data.prompt_column out to have it after 'instruction'"
        return [replace(row, notes=(*row.notes, note)) for row in rows], prompt_column
    if prompt_column != "prompt" or "prompt" in names:
        return list(rows), prompt_column
    if "messages" in names:
        return list(rows), "messages"
    if "conversations" in names:
        note = "ShareGPT: 'conversations' is the prompt, and its last reply the reference"
        return [replace(_with_system(row), notes=(*row.notes, note)) for row in rows], "conversations"
    context = left_out("instruction", names)
    if "instruction" in names and (context or "output" in names):
        joined = f"'instruction', a blank line and {context!r}" if context else "'instruction'"
        note = f"Alpaca: prompt is {joined}" + ("; reference is 'output'" if "output" in names else "")
        return [replace(_joined(row, context), notes=(*row.notes, note)) for row in rows], "prompt"
    return list(rows), prompt_column


def left_out(column: str, names: Sequence[str]) -> str | None:
    """The column that a prompt of ``column`` alone would leave out; None where there is none."""
    asks = column in ("instruction", "question", "query")
    return next((name for name in CONTEXTS if asks and name in names), None)


def _with_system(row: Row) -> Row:
    turns, system = row.values.get("conversations"), row.values.get("system")
    if not isinstance(turns, list) or not isinstance(system, str) or not system.strip():
        return row
    return replace(
        row, values={**row.values, "conversations": [{"role": "system", "content": system}, *turns]}
    )


def _joined(row: Row, context: str | None) -> Row:
    if row.problem or "instruction" not in row.values:
        return row
    values = dict(row.values)
    prompt, more = values["instruction"], values.get(context) if context else None
    if more is not None and not isinstance(more, str):
        return replace(row, problem=f"{context} must be text, got {type(more).__name__}")
    if isinstance(prompt, str) and more and more.strip():
        prompt = f"{prompt}\n\n{more}"
    completion = {} if values.get("output") is None else {"completion": values["output"]}
    return replace(row, values={**completion, **values, "prompt": prompt})


def as_messages(turns: Sequence[Any]) -> list[Any]:
    """Turns as ``{role, content}`` of texts: ShareGPT's ``{from, value}`` renamed, the text parts of a content joined.

    An assistant's turn that only calls tools gets an empty content. What is no turn stays for `last_exchange` to name.

    Raises ValueError for a part of a content that is no text.
    """
    return [
        _message(number, turn) if isinstance(turn, Mapping) else turn for number, turn in enumerate(turns, 1)
    ]


def _message(number: int, turn: Mapping[str, Any]) -> dict[str, Any]:
    message = dict(turn)
    if message.get("role") is None and isinstance(message.get("from"), str):
        speaker = message.pop("from")
        message |= {"role": ROLES.get(str(speaker).lower(), speaker), "content": message.pop("value", None)}
    content = message.get("content")
    if isinstance(content, list):
        message["content"] = "".join(_part(number, part) for part in content)
    elif content is None and (message.get("tool_calls") or message.get("function_call")):
        message["content"] = ""
    return message


def _part(number: int, part: Any) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if kind not in TEXT_PARTS or not isinstance(part.get("text"), str):
        raise ValueError(f"message {number} holds a part of type {kind!r}, and only parts of text are read")
    return part["text"]


def refuse_written_conversation(column: str, text: str) -> None:
    """Raise ValueError for a conversation that a table holds as text, which would be trained on as it is spelt."""
    if WRITTEN.match(text):
        raise ValueError(
            f"{column} is a conversation written as text; give it as a list of messages, in JSON or Parquet"
        )
