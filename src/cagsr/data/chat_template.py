"""Chat templates: which turns are the prompt and which the reference, and how a conversation is rendered.

One template, applied here once, serves training, evaluation and judging.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from cagsr.config.schema import NOT_OF_TEMPLATES
from cagsr.errors import InputError
from cagsr.types import Turn

__all__ = ["answered", "last_exchange", "messages_of", "render", "template_options", "turn_end"]

Message = Mapping[str, Any]

# Stands for what somebody wrote while a template is asked where it puts that.
MARK = "\ue000{}\ue001"


def messages_of(messages: Sequence[Any]) -> list[Message]:
    """The messages without their empty fields, such as data sets write where another row has a value.

    A message has a role and, unless it calls tools, text. Raises ValueError in words for one that has not, and where
    no user turn has text.
    """
    found = []
    for number, message in enumerate(messages, start=1):
        fields = _without_none(message) if isinstance(message, Mapping) else {}
        if fields.get("tool_calls"):
            fields.setdefault("content", "")
        for key in ("role", "content"):
            if not isinstance(fields.get(key), str):
                raise ValueError(f"message {number} has no text as its {key!r}")
        found.append(fields)
    users = [message["content"] for message in found if message["role"] == "user"]
    if not users:
        raise ValueError("no message has the role 'user'")
    if not users[-1].strip():
        raise ValueError("prompt is empty")
    return found


def last_exchange(messages: Sequence[Any]) -> tuple[list[Message], str | None]:
    """Split a conversation: all turns up to the last of the user or of a tool, and the assistant's last text after it.

    Raises ValueError as `messages_of` does.
    """
    turns = messages_of(messages)
    end = max(number for number, turn in enumerate(turns) if turn["role"] != "assistant") + 1
    replies = [turn["content"] for turn in turns[end:] if turn["role"] == "assistant" and turn["content"]]
    return turns[:end], replies[-1] if replies else None


def answered(messages: Sequence[Message], response: str) -> list[Message]:
    """The conversation with a response of the assistant: the rest of its last turn, or a turn of its own."""
    if messages[-1]["role"] == "assistant":
        return [*messages[:-1], {**messages[-1], "content": messages[-1]["content"] + response}]
    return [*messages, {"role": "assistant", "content": response}]


def template_options(row: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a row's conversation is rendered with: its ``tools``, and its ``chat_template_kwargs`` over ``defaults``.

    Both are read as TRL reads them, as data or as JSON. Raises ValueError, in words, for what is neither.
    """
    tools, own = (_parsed(row, name) for name in ("tools", "chat_template_kwargs"))
    if not isinstance(tools, list | None) or not all(isinstance(tool, Mapping) for tool in tools or ()):
        raise ValueError("tools must be a list of JSON schemas")
    if not isinstance(own, Mapping | None):
        raise ValueError("chat_template_kwargs must be a mapping")
    for name in sorted(NOT_OF_TEMPLATES & set(own or {})):
        raise ValueError(f"chat_template_kwargs: {name} is no variable of a chat template; leave it out")
    # Templates write the words around tools even for none of them.
    return {**(defaults or {}), **(own or {}), **({"tools": tools} if tools else {})}


def _parsed(row: Mapping[str, Any], name: str) -> Any:
    value = row.get(name)
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except ValueError as error:
            raise ValueError(f"{name} is invalid JSON: {error}") from None
    return _without_none(value)


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return [_without_none(inner) for inner in value] if isinstance(value, list) else value


def render(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, **options: Any
) -> tuple[str, tuple[Turn, ...]]:
    """Render a conversation: the text that the model reads, up to where a response begins, and where its turns stand.

    A turn is what stands in the place of its content, whatever the template makes of it. One of the assistant at the
    end is left open, so that the response goes on with it; after any other a generation prompt is written.
    ``options`` are those of ``apply_chat_template``: ``tools``, variables of the template, and so on.

    Raises InputError when the tokenizer has no chat template, and ValueError when the template refuses the
    conversation or changes what a user wrote.
    """
    if not tokenizer.chat_template:
        raise InputError(
            f"{tokenizer.name_or_path or 'the tokenizer'} has no chat template, which conversational data "
            "need. Use a chat model, or a column of plain text as data.prompt_column."
        )
    role = messages[-1]["role"]
    if role not in ("user", "tool", "assistant"):
        raise ValueError(f"the last message is of the role {role!r}, to which nobody answers")
    goes_on = role == "assistant"
    options = {"add_generation_prompt": not goes_on, "continue_final_message": goes_on, **options}
    text = _applied(messages, tokenizer, options)
    turns = _all_at_once(messages, text, tokenizer, options)
    if turns is None:
        turns = _one_by_one(messages, text, tokenizer, options)
    return text, tuple(sorted(turns, key=lambda turn: turn.start))


def _all_at_once(
    messages: Sequence[Message], text: str, tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any]
) -> list[Turn] | None:
    """The turns, from one rendering with a mark in the place of each; None where the template rewrites some of them.

    Searching for the words would also find them in the template ("user"); what stands between marks is template.
    """
    marks = {n: MARK.format(n) for n, message in enumerate(messages) if message.get("content")}
    marked = [{**turn, "content": marks.get(n, turn.get("content"))} for n, turn in enumerate(messages)]
    try:
        rest = _applied(marked, tokenizer, options)
    except ValueError:
        return None
    for trimmed in (str, str.strip):
        turns, written, left = [], "", rest
        for n, mark in marks.items():
            before, found, left = left.partition(mark)
            if not found:
                return None
            start = len(written) + len(before)
            written += before + trimmed(messages[n]["content"])
            turns.append(Turn(messages[n]["role"], start, len(written)))
        if written + left == text:
            return turns
    return None


def _one_by_one(
    messages: Sequence[Message], text: str, tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any]
) -> list[Turn]:
    """The turns, from a rendering for each, so that what the template makes of the others is no matter.

    One of the assistant, say, of which the template writes nothing is left out. Raises ValueError for a user's.
    """
    turns = []
    for n, message in enumerate(messages):
        if not message.get("content"):
            continue
        marked = [*messages[:n], {**message, "content": MARK.format(n)}, *messages[n + 1 :]]
        try:
            before, found, after = _applied(marked, tokenizer, options).partition(MARK.format(n))
        except ValueError:
            before, found, after = "", "", ""
        start, stop = len(before), len(text) - len(after)
        is_there = found and start <= stop and text.startswith(before) and text.endswith(after)
        if message["role"] == "user":
            if not found:
                raise ValueError("the chat template leaves out a user turn")
            if not is_there or text[start:stop].strip() != message["content"].strip():
                raise ValueError("the chat template changes what the user wrote")
        if is_there:
            turns.append(Turn(message["role"], start, stop))
    return turns


def turn_end(tokenizer: PreTrainedTokenizerBase, ends: Sequence[int | None]) -> int | None:
    """The token that the chat template writes after an assistant's turn: the first among ``ends``, or else the special
    one that follows the turn whether or not another comes. None where it writes neither, and without a template.

    A model may end its turns with another token than the tokenizer's end of sequence.
    """
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": MARK}]
    last, between = (
        _after_mark(tokenizer, [*turns, *more]) for more in ([], [{"role": "user", "content": MARK}])
    )
    listed = [token for token in last if token in ends]
    added = tokenizer.added_tokens_decoder
    special, again = ([t for t in row if t in added and added[t].special] for row in (last, between))
    if listed or not special or special[0] != next(iter(again), None):
        return next(iter(listed), None)
    return special[0]


def _after_mark(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Message]) -> list[int]:
    """The tokens from the first mark in a rendered conversation to the next, or to its end.

    None of them where the template refuses the conversation or drops the mark.
    """
    try:
        text = _applied(turns, tokenizer, {"add_generation_prompt": False, "continue_final_message": False})
    except ValueError:
        return []
    after = [*text.split(MARK), ""][1]
    return list(tokenizer(after, add_special_tokens=False)["input_ids"])


def _applied(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any]
) -> str:
    try:
        turns = [dict(message) for message in messages]
        return str(tokenizer.apply_chat_template(turns, tokenize=False, **options))
    except Exception as error:  # templates are programs: jinja raises whatever they raise
        raise ValueError(f"the chat template refuses the conversation: {error}") from None
