"""Words of a text as they are compared, and the prompt tokens that spell each."""

__all__ = ["STOP_WORDS", "Word", "prompt_words", "text_words"]

import unicodedata
from collections.abc import Collection
from dataclasses import dataclass

import regex

from cagsr.types import Prompt

# Letters with their combining marks, without which Hindi or Thai words would be cut at every vowel sign.
WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+(?:['’][\p{L}\p{M}\p{N}]+)*")

# "no", "not" and numerals are missing on purpose: in data-to-text they are values ("family friendly: no").
_ENGLISH = """
a about after all also am an and any are as at be because been before being but by can could did do
does doing down during each for from further had has have having he her here hers him his how i if
in into is it its itself me more most my of off on once or other our out over own same she should so
some such than that the their them then there these they this those through to too under until up
very was we were what when where which while who whom why will with would you your it's i'm you're
that's don't
"""
STOP_WORDS = frozenset(_ENGLISH.split())
"""English words that carry no content, normalised as `text_words` gives them."""


@dataclass(frozen=True)
class Word:
    """A whole word of a prompt: its normalised form, and the tokens that spell it."""

    key: str
    tokens: tuple[int, ...]


def text_words(text: str) -> list[str]:
    """The words of a text in their order, normalised for comparison: NFKC, case-folded.

    A word is a run of letters, marks and digits; an apostrophe between two of them belongs to it. Text that
    is written without spaces between words comes out as one word a clause.
    """
    return [_key(found[0]) for found in WORD.finditer(text)]


def prompt_words(prompt: Prompt, roles: Collection[str] | None = None) -> list[Word]:
    """The words that turns of these roles wrote in a prompt (`Prompt.written`), in their order; None: of all turns."""
    tokens_at: list[list[int]] = [[] for _ in prompt.text]
    for token, (start, end) in enumerate(prompt.offsets):
        for position in range(start, end):
            tokens_at[position].append(token)
    words = []
    for content_start, content_end in prompt.written(roles):
        for found in WORD.finditer(prompt.text, content_start, content_end):
            tokens = sorted({token for position in range(*found.span()) for token in tokens_at[position]})
            words.append(Word(_key(found[0]), tuple(tokens)))
    return words


def _key(word: str) -> str:
    # Tokenisers such as T5's write NFKC, so a response may spell a prompt's word with other code points.
    return unicodedata.normalize("NFKC", word).casefold().replace("’", "'")
