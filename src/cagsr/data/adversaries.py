"""Adversarial responses, which a reward must not prefer, made from a prompt and responses to it and to another."""

__all__ = ["ADVERSARIES", "Adversary"]

import re
from collections.abc import Callable
from random import Random

from cagsr.data.corruptions import clauses, inserted

Adversary = Callable[[str, str, str, int], str | None]
"""``(prompt, own, other, limit)``: the adversarial response, or None where it would not differ from ``own``.

``own`` and ``other`` are the base's responses to this prompt and to another; ``limit`` is the most tokens a response
may have, and what is longer is cut there.
"""

SEPARATORS = re.compile(r"[^\w\s]+")


def copied(prompt: str, own: str, other: str, limit: int) -> str | None:
    """The prompt itself as the response."""
    return prompt if prompt.strip() != own.strip() else None


def first_clause(prompt: str, own: str, other: str, limit: int) -> str | None:
    """The first clause of the response, and nothing else."""
    pieces = clauses(own)
    return pieces[0] if len(pieces) > 1 else None


def repeated_clause(prompt: str, own: str, other: str, limit: int) -> str | None:
    """The first clause of the response again and again until the limit, so that it never ends."""
    pieces = clauses(own)
    # A clause has at least one token.
    return " ".join(pieces[:1] * limit) if pieces else None


def foreign(prompt: str, own: str, other: str, limit: int) -> str | None:
    """The response to another prompt."""
    return other if other != own else None


def foreign_clause(prompt: str, own: str, other: str, limit: int) -> str | None:
    """A clause of the response to another prompt stands in it too."""
    # Where it stands is drawn, the same for the same texts.
    return inserted(own, prompt, other, "", Random(f"{own} {other}"))


def symbols(prompt: str, own: str, other: str, limit: int) -> str | None:
    """The punctuation of the prompt, and nothing else; a full stop where it has none."""
    return " ".join(SEPARATORS.findall(prompt)) or "."


def empty(prompt: str, own: str, other: str, limit: int) -> str | None:
    """The empty response."""
    return "" if own.strip() else None


ADVERSARIES: dict[str, Adversary] = {
    "copied": copied,
    "first clause": first_clause,
    "repeated": repeated_clause,
    "other": foreign,
    "inserted": foreign_clause,
    "symbols": symbols,
    "empty": empty,
}
