"""Special tokens that data spell: read as the text that they are, unless told otherwise.

A tokenizer takes ``</s>`` in a user's words for the end of the sequence. Its own option for that
(``split_special_tokens``) concerns a whole text, template included, and does not help where the token is a piece of the
vocabulary too, as in T5's.
"""

import json
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from cagsr.types import Span, Turn

__all__ = ["Tokens", "spelt_in", "tokenised"]

# Letters that no data are written in, and that tokenizers leave as they are: names of special tokens.
FIRST, DIGITS = 0x13000, 1000


class Tokens(NamedTuple):
    """Tokens of a text with their character spans, and the spans of special tokens that its turns spell."""

    ids: tuple[int, ...]
    offsets: tuple[Span, ...]
    spelt: tuple[Span, ...]


def tokenised(
    text: str,
    turns: Sequence[Turn],
    tokenizer: PreTrainedTokenizerBase,
    *,
    add_special_tokens: bool,
    as_text: bool = True,
) -> Tokens:
    """Tokenise a text of which ``turns`` are data and the rest is template.

    Special tokens that a turn spells are text, or with ``as_text`` false what the tokenizer takes them for. In a turn
    of the assistant only those that the template writes, or that begin, end or pad a sequence, are text: what else a
    model may write, such as ``<think>``, stays the token that it is. Without any the tokens are the tokenizer's own.

    Raises ValueError for a tokenizer that cannot read them as text.
    """
    encoded = tokenizer(
        text, add_special_tokens=add_special_tokens, return_offsets_mapping=True, verbose=False
    )
    ids, offsets = tuple(encoded["input_ids"]), tuple(map(tuple, encoded["offset_mapping"]))
    special = _special(tokenizer)
    found: dict[Span, tuple[str, str | None]] = {}  # span -> the token, and whose turn spells it
    for token, (start, end) in zip(ids, offsets, strict=True):
        if token in special and text[start:end].strip() == special[token]:
            whose = next((turn.role for turn in turns if turn.start < end and start < turn.stop), None)
            found[start, end] = special[token], whose
    spelt = tuple(span for span, (_, whose) in found.items() if whose is not None)
    if not spelt or not as_text:
        return Tokens(ids, offsets, spelt)
    marks = {token for token, whose in found.values() if whose is None}
    marks |= {str(token) for token in (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)}
    kept = {
        span: token
        for span, (token, whose) in found.items()
        if whose is None or (whose == "assistant" and token not in marks)
    }
    return Tokens(*_read(text, kept, tokenizer, special.values(), add_special_tokens), spelt)


def spelt_in(value: Any, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A special token that plain data, such as tool schemas, spell somewhere; None where they spell none."""
    written = json.dumps(value, ensure_ascii=False, default=str)
    return next((token for token in _special(tokenizer).values() if token in written), None)


def _special(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    return {n: token.content for n, token in tokenizer.added_tokens_decoder.items() if token.special}


def _read(
    text: str,
    kept: dict[Span, str],
    tokenizer: PreTrainedTokenizerBase,
    special: Collection[str],
    add_special_tokens: bool,
) -> tuple[tuple[int, ...], tuple[Span, ...]]:
    """Tokens of the text where nothing but the special tokens in ``kept`` is special.

    The same tokenizer reads it under other names for its special tokens, which nobody can have written. A name is as
    long as its token, so that characters keep their places.
    """
    backend, names = _renamed(tokenizer, special)
    if any(FIRST <= ord(character) < FIRST + DIGITS for character in text):
        raise ValueError("it has hieroglyphs beside a special token; remove either")
    pieces, position = [], 0
    for (start, end), token in sorted(kept.items()):
        pieces += [text[position:start], text[start:end].replace(token, names[token])]
        position = end
    encoded = backend.encode("".join([*pieces, text[position:]]), add_special_tokens=add_special_tokens)
    return tuple(encoded.ids), tuple(encoded.offsets)


_KNOWN: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, Tokenizer, dict[str, str]]] = (
    WeakKeyDictionary()
)


def _renamed(
    tokenizer: PreTrainedTokenizerBase, special: Collection[str]
) -> tuple[Tokenizer, dict[str, str]]:
    """The tokenizer with other names for its special tokens, and these names."""
    size, backend, names = _KNOWN.get(tokenizer, (None, None, None))
    if backend is None or names is None or size != len(tokenizer):
        names = {token: _name(number, len(token)) for number, token in enumerate(special)}
        written = json.loads(cast(Tokenizer, tokenizer.backend_tokenizer).to_str())
        for token in written["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
        model = written["model"]
        pieces = model["vocab"]
        model["vocab"] = (
            {names.get(piece, piece): number for piece, number in pieces.items()}
            if isinstance(pieces, dict)
            else [[names.get(piece, piece), score] for piece, score in pieces]
        )
        if model.get("unk_token") in names:
            model["unk_token"] = names[model["unk_token"]]
        try:
            backend = Tokenizer.from_str(json.dumps(written))
        except Exception as error:  # tokenizers has no class of its own
            raise ValueError(
                f"it spells a special token, which the tokenizer cannot read as text ({error}); remove it"
            ) from None
        backend.no_truncation()
        backend.no_padding()
        _KNOWN[tokenizer] = len(tokenizer), backend, names
    return backend, names


def _name(number: int, length: int) -> str:
    digits = [number // DIGITS**place % DIGITS for place in range(length)]
    return "".join(chr(FIRST + digit) for digit in digits)
