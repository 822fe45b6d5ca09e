"""One row's prompt as tokens: a conversation that the chat template renders, or a plain text."""

from collections.abc import Mapping
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from cagsr.config.schema import NOT_OF_TEMPLATES
from cagsr.data.chat_template import render, template_options
from cagsr.data.readers import Row
from cagsr.data.special_tokens import Tokens, spelt_in, tokenised
from cagsr.data.truncation import content_tokens
from cagsr.types import Prompt, Turn

__all__ = [
    "SpecialTokens",
    "added_end",
    "demand_whole",
    "is_conversation",
    "make_prompt",
    "no_position",
    "text_ids",
]

SpecialTokens = Literal["text", "control", "verbatim"]
"""What special tokens are that a prompt spells: text; in plain text the tokens themselves; or everywhere these."""


def is_conversation(prompt: Any) -> bool:
    """Whether a prompt is a list of messages rather than a text."""
    return not isinstance(prompt, str)


def make_prompt(
    row: Row,
    index: int,
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: Mapping[str, Any] | None = None,
    special_tokens: SpecialTokens = "text",
    goes_on: bool = False,
) -> Prompt:
    """Encode one row, with its columns mapped, as a prompt.

    template        options of `chat_template.render`, over which the row's own win.
    special_tokens  as of `SpecialTokens`. ``verbatim``: the tokens are those that the tokenizer makes of the text.
    goes_on         the response goes on where the prompt ends (a causal model): an end of sequence that the tokenizer
                    adds is left out, unless ``verbatim``.

    Raises ValueError, with the reason, for an unusable row.
    """
    if row.problem:
        raise ValueError(row.problem)
    prompt = row.values["prompt"]
    conversational, options = is_conversation(prompt), {}
    if conversational:
        options = template_options(row.values, template)
        text, turns = render(prompt, tokenizer, **options)
        _refuse_spelt_in_template(prompt, options.get("tools"), tokenizer)
    else:
        text, turns = prompt, (Turn("user", 0, len(prompt)),)
    demand_whole("prompt", text)  # a template writes more of a conversation than its contents
    # A chat template writes the special tokens itself; the tokenizer must not add them a second time.
    as_text = special_tokens == "text" or (conversational and special_tokens == "control")
    tokens = tokenised(text, turns, tokenizer, add_special_tokens=not conversational, as_text=as_text)
    if special_tokens != "verbatim":
        tokens = _without_added(tokens, tokenizer, goes_on and not conversational)
    kept = {key: value for key, value in options.items() if key == "tools" or key not in NOT_OF_TEMPLATES}
    made = Prompt(
        text,
        tokens.ids,
        tokens.offsets,
        turns,
        index,
        row.values,
        spelt=tokens.spelt,
        template=kept,
        part=row.part,
        weight=row.weight,
    )
    special = frozenset(tokenizer.all_special_ids)
    if all(made.ids[token] in special for token in content_tokens(made)):
        raise ValueError("no content tokens: special or unknown tokens only")
    return made


def text_ids(
    text: str, tokenizer: PreTrainedTokenizerBase, *, special: bool = True, goes_on: bool = False
) -> list[int]:
    """The tokens of a text whose special tokens are text: ``special`` with those that the tokenizer adds, but for an
    end of sequence where something ``goes_on``.
    """
    tokens = tokenised(text, [Turn("user", 0, len(text))], tokenizer, add_special_tokens=special)
    return list(_without_added(tokens, tokenizer, goes_on).ids if special else tokens.ids)


def added_end(
    ids: tuple[int, ...], offsets: tuple[tuple[int, int], ...], tokenizer: PreTrainedTokenizerBase
) -> bool:
    """Whether the last of several tokens is an end of sequence that stands for no text: the tokenizer added it."""
    return len(ids) > 1 and ids[-1] == tokenizer.eos_token_id and offsets[-1][0] == offsets[-1][1]


def no_position(token: int | None) -> str:
    """What to say of a text with a ``token`` that its model counts no position for."""
    return f"token {token} inside: the model takes it for padding, which has no position"


def demand_whole(name: str, text: str) -> None:
    """Raise ValueError for a text with an unpaired surrogate, which JSON may hold and no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} holds half of a surrogate pair, which is no character") from None


def _without_added(tokens: Tokens, tokenizer: PreTrainedTokenizerBase, goes_on: bool) -> Tokens:
    """The tokens without those that the tokenizer added beside the same ones in the text, or at an end that goes on."""
    ids, offsets, spelt = tokens
    if len(ids) > 1 and ids[0] == ids[1] and offsets[0][1] == 0:
        ids, offsets = ids[1:], offsets[1:]
    doubled = len(ids) > 1 and ids[-1] == ids[-2] and offsets[-1][0] == offsets[-1][1]
    if doubled or (goes_on and added_end(ids, offsets, tokenizer)):
        ids, offsets = ids[:-1], offsets[:-1]
    return Tokens(ids, offsets, spelt)


def _refuse_spelt_in_template(messages: Any, tools: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError for special tokens in data that a template mixes with words of its own."""
    rest = [{key: value for key, value in message.items() if key != "content"} for message in messages]
    token = spelt_in([rest, tools], tokenizer)
    if token is not None:
        raise ValueError(f"tools, or fields of a message beside its content, spell {token!r}; remove it")
