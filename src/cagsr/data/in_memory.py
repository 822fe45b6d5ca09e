"""Encoding of prompts that a program holds in memory, texts or conversations."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from cagsr.data.prompts import demand_fast, make_prompt
from cagsr.data.readers import Row
from cagsr.errors import InputError
from cagsr.types import Prompt

__all__ = ["encode_in_memory", "is_conversation"]


def is_conversation(prompt: Any) -> bool:
    """Whether a prompt is a list of messages rather than a text."""
    return not isinstance(prompt, str)


def encode_in_memory(
    prompts: Sequence[Any],
    tokenizer: PreTrainedTokenizerBase,
    *,
    columns: Mapping[str, Sequence[Any]] | None = None,
    template: Mapping[str, Any] | None = None,
) -> list[Prompt]:
    """Encode texts or conversations (lists of ``{role, content}``) as prompts, in order; equal ones are encoded once.

    A text is tokenised as the tokenizer does it, with the special tokens it adds; a conversation is rendered by its
    chat template with the generation prompt, or, where it ends in a turn of the assistant, so that this turn goes on.

    columns   further data of each prompt by name, kept in ``Prompt.row``.
    template  options of ``apply_chat_template`` that win over these.

    Warns of a text that seems to be a rendered conversation. Raises InputError naming the prompt that cannot be read.
    """
    demand_fast(tokenizer)
    if isinstance(prompts, str) or not len(prompts):
        raise InputError(
            "prompts: expected a list of texts or of conversations, with at least one; put one in a list"
        )
    special = frozenset(tokenizer.all_special_ids)
    known: dict[str, Prompt] = {}
    found = []
    for n, prompt in enumerate(prompts):
        key = repr(prompt)
        if key not in known:
            try:
                options = {**_end_of(prompt, tokenizer), **(template or {})}
                known[key] = make_prompt(Row({"prompt": prompt}), n, tokenizer, special, **options)
            except (TypeError, ValueError) as error:
                raise InputError(f"prompts[{n}]: {error}; correct it or leave it out") from error
        row = {"prompt": prompt, **{name: values[n] for name, values in (columns or {}).items()}}
        found.append(replace(known[key], index=n, row=row))
    _warn_of_rendered(found, tokenizer)
    return found


def _end_of(prompt: Any, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Template options for the end of a conversation: a generation prompt, or the assistant's last turn left open.

    Empty for a text. Raises ValueError, with the reason, for what is neither.
    """
    if not is_conversation(prompt):
        return {}
    if not isinstance(prompt, Sequence) or not prompt:
        raise ValueError(f"expected a text or a list of messages, got {type(prompt).__name__}")
    for number, message in enumerate(prompt):
        fields = message if isinstance(message, Mapping) else {}
        if not isinstance(fields.get("role"), str):
            raise ValueError(f"message {number} is no mapping with a text as its 'role'")
        if not isinstance(fields.get("content"), str):
            what = type(fields.get("content")).__name__
            raise ValueError(
                f"the content of message {number} must be text, got {what} (images and calls are not read)"
            )
    if not tokenizer.chat_template:
        raise ValueError(
            "it is a conversation, and the tokenizer has no chat template; give plain text or a chat model"
        )
    goes_on = prompt[-1]["role"] == "assistant"
    return {"add_generation_prompt": not goes_on, "continue_final_message": goes_on}


def _warn_of_rendered(prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase) -> None:
    """Warn of special tokens spelt in a text: they would be read, and rewarded, as something that the user said."""
    unknown = tokenizer.unk_token
    special = {
        token
        for token, added in tokenizer.added_tokens_decoder.items()
        if added.special and added.content != unknown
    }
    for prompt in prompts:
        written = [
            prompt.text[start:end]
            for token, (start, end) in zip(prompt.ids, prompt.offsets, strict=True)
            if token in special and start < end
        ]
        if written and not is_conversation(prompt.row["prompt"]):
            warnings.warn(
                f"prompts[{prompt.index}] has the special token {written[0]!r} in its text, as if a chat template had "
                "rendered it already; give the conversation as a list of {role, content} instead",
                UserWarning,
                stacklevel=4,
            )
            return
