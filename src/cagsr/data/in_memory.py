"""Encoding of prompts that a program holds in memory, texts or conversations."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from cagsr.data.chat_template import messages_of
from cagsr.data.make_prompt import SpecialTokens, is_conversation, make_prompt
from cagsr.data.prompts import demand_fast
from cagsr.data.readers import Row
from cagsr.data.remarks import Remarks
from cagsr.errors import InputError
from cagsr.types import Prompt

__all__ = ["encode_in_memory"]

# At the line that called what calls `encode_in_memory`.
WARN = partial(warnings.warn, category=UserWarning, stacklevel=3)


def encode_in_memory(
    prompts: Sequence[Any],
    tokenizer: PreTrainedTokenizerBase,
    *,
    columns: Mapping[str, Sequence[Any]] | None = None,
    template: Mapping[str, Any] | None = None,
    goes_on: bool = False,
    verbatim: bool = False,
    warn: Callable[[str], None] = WARN,
) -> list[Prompt]:
    """Encode texts or conversations (lists of ``{role, content}``) as prompts, in order; equal ones are encoded once.

    A text is tokenised with the special tokens that the tokenizer adds; a conversation is rendered by its chat template
    with the generation prompt, or, where it ends in a turn of the assistant, so that this turn goes on. Special tokens
    that a prompt spells are text.

    columns   further data of each prompt by name, kept in ``Prompt.row``.
    template  options of ``apply_chat_template``; those in the columns ``tools`` and ``chat_template_kwargs`` win.
    goes_on   the model is causal: an end of sequence that the tokenizer adds to a text is left out.
    verbatim  read as trainers of other libraries do: whatever the columns say, and the tokens are those that the
              tokenizer makes of the whole text.

    Calls ``warn`` with what `Remarks` has to say. Raises InputError naming the prompt that cannot be read.
    """
    demand_fast(tokenizer)
    if isinstance(prompts, str) or not len(prompts):
        raise InputError(
            "prompts: expected a list of texts or of conversations, with at least one; put one in a list"
        )
    known: dict[str, Prompt] = {}
    special_tokens: SpecialTokens = "verbatim" if verbatim else "text"
    found, remarks = [], Remarks(tokenizer, special_tokens, goes_on)
    for n, prompt in enumerate(prompts):
        row = {name: values[n] for name, values in (columns or {}).items()}
        rendered = {name: row.get(name) for name in ("tools", "chat_template_kwargs") if not verbatim}
        key = repr([prompt, *rendered.values()])
        if key not in known:
            try:
                asked = Row({**rendered, "prompt": _checked(prompt, tokenizer)})
                how = {"special_tokens": special_tokens, "goes_on": goes_on}
                known[key] = make_prompt(asked, n, tokenizer, template=template, **how)
            except (TypeError, ValueError) as error:
                raise InputError(f"prompts[{n}]: {error}; correct it or leave it out") from error
            remarks.add(known[key], f"prompts[{n}]")
        found.append(replace(known[key], index=n, row={**row, "prompt": known[key].row["prompt"]}))
    for line in remarks.warnings():
        warn(line)
    return found


def _checked(prompt: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
    """A text as it is, or messages as `messages_of` has them. Raises ValueError, with the reason, for anything else."""
    if not is_conversation(prompt):
        return prompt
    if not isinstance(prompt, Sequence) or not prompt:
        raise ValueError(f"expected a text or a list of messages, got {type(prompt).__name__}")
    messages = messages_of(prompt)
    if not tokenizer.chat_template:
        raise ValueError(
            "it is a conversation, and the tokenizer has no chat template; give plain text or a chat model"
        )
    return messages
