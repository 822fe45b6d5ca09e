"""Chat templates: which turns are the prompt and which the reference, and how a conversation is rendered.

One template, applied here once, serves training, evaluation and judging.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from cagsr.errors import InputError

__all__ = ["last_exchange", "render", "turn_end"]

Message = Mapping[str, Any]

MARK = "\ue000"


def last_exchange(messages: Sequence[Any]) -> tuple[list[Message], str | None]:
    """Split a conversation: all turns up to the last user turn, and the last assistant turn after it, if any.

    Raises ValueError in words when a turn is no ``{role, content}`` of texts or no user turn has text.
    """
    for number, message in enumerate(messages, start=1):
        fields = message if isinstance(message, Mapping) else {}
        for key in ("role", "content"):
            if not isinstance(fields.get(key), str):
                raise ValueError(f"message {number} has no text as its {key!r}")
    users = [number for number, message in enumerate(messages) if message["role"] == "user"]
    if not users:
        raise ValueError("no message has the role 'user'")
    if not messages[users[-1]]["content"].strip():
        raise ValueError("prompt is empty")
    replies = [turn["content"] for turn in messages[users[-1] :] if turn["role"] == "assistant"]
    return list(messages[: users[-1] + 1]), replies[-1] if replies else None


def render(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, **options: Any
) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Render a conversation: the text that the model reads, generation prompt included, and the spans that users wrote.

    ``options`` are those of ``apply_chat_template``: ``tools``, variables of the template, and so on.

    Raises InputError when the tokenizer has no chat template, and ValueError when the template refuses the
    conversation or changes what a user wrote.
    """
    if not tokenizer.chat_template:
        raise InputError(
            f"{tokenizer.name_or_path or 'the tokenizer'} has no chat template, which conversational data "
            "need. Use a chat model, or a column of plain text as data.prompt_column."
        )
    text = _applied(messages, tokenizer, options)
    users = [message["content"] for message in messages if message["role"] == "user"]
    # Searching for the user's words would also find them in the template ("user"); so it is rendered again
    # with marks in their place, and what stands between the marks is template.
    marks = [f"\ue000{number}\ue001" for number in range(len(users))]
    numbers = iter(marks)
    rest = _applied(
        [{**turn, "content": next(numbers)} if turn["role"] == "user" else turn for turn in messages],
        tokenizer,
        options,
    )
    template = []
    for mark in marks:
        before, found, rest = rest.partition(mark)
        if not found:
            raise ValueError("the chat template leaves out a user turn")
        template.append(before)
    for written in (users, [user.strip() for user in users]):
        pieces = [part for pair in zip(template, written, strict=True) for part in pair]
        if "".join([*pieces, rest]) == text:
            return text, _spans(pieces)
    raise ValueError("the chat template changes what the user wrote")


def _spans(pieces: list[str]) -> tuple[tuple[int, int], ...]:
    """The character spans of every second piece."""
    spans, position = [], 0
    for number, piece in enumerate(pieces):
        if number % 2 and piece:
            spans.append((position, position + len(piece)))
        position += len(piece)
    return tuple(spans)


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
        text = _applied(turns, tokenizer, {"add_generation_prompt": False})
    except ValueError:
        return []
    after = [*text.split(MARK), ""][1]
    return list(tokenizer(after, add_special_tokens=False)["input_ids"])


def _applied(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any]
) -> str:
    try:
        turns = [dict(message) for message in messages]
        given = {"add_generation_prompt": True, **options}
        return str(tokenizer.apply_chat_template(turns, tokenize=False, **given))
    except Exception as error:  # templates are programs: jinja raises whatever they raise
        raise ValueError(f"the chat template refuses the conversation: {error}") from None
