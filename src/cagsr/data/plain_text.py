"""Tokens of texts as plain text: a special token spelt in a text is read letter by letter and controls nothing."""

from collections.abc import Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

__all__ = ["text_ids", "text_tokens"]

HOW: dict[str, Any] = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}


def text_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, with none of the tokenizer's special tokens but the unknown one among them."""
    control = _control(tokenizer)
    return [
        row if control.isdisjoint(row) else [token for token, _ in text_tokens(tokenizer, text)]
        for text, row in zip(texts, tokenizer(list(texts), **HOW)["input_ids"] if texts else [], strict=True)
    ]


def text_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> Iterator[tuple[int, tuple[int, int]]]:
    """The tokens of `text_ids` for one text, with the characters that each stands for; needs a fast tokenizer.

    Some tokenizers' models, Unigram ones among them, have a special token as a word of their own, whatever the
    tokenizer is told of it. Such a word is read one character at a time.
    """
    control = _control(tokenizer)
    found = tokenizer(text, return_offsets_mapping=True, **HOW)
    for token, (start, end) in zip(found["input_ids"], found["offset_mapping"], strict=True):
        if token not in control:
            yield token, (start, end)
            continue
        for place in range(start, end):
            letters = tokenizer(text[place], **HOW)["input_ids"]
            yield from ((letter, (place, place + 1)) for letter in letters if letter not in control)


def _control(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    unknown = tokenizer.unk_token_id
    return {token for token in tokenizer.all_special_ids if token != unknown}
