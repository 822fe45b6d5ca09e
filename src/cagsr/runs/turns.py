"""Turns of a conversation in a record: they stand beside its prompt's text, and are shown by role, without template."""

from collections.abc import Sequence
from typing import Any

__all__ = ["RecordedTurn", "by_role", "recorded", "role_labels"]

RecordedTurn = tuple[str, int, int]
"""Role, and where the turn begins and ends in the prompt's text, in characters."""

Span = tuple[int, int]


def recorded(text: str, turns: Sequence[RecordedTurn]) -> dict[str, Any]:
    """The field ``turns`` of a record; none for a prompt that is nothing but what its user wrote."""
    return {} if list(turns) == [("user", 0, len(text))] else {"turns": [list(turn) for turn in turns]}


def by_role(text: str, turns: Sequence[RecordedTurn], spans: Sequence[Span] = ()) -> tuple[str, list[Span]]:
    """What was said, turn by turn, each after its role where there are several; and where ``spans`` of ``text`` are
    in that, ``(0, 0)`` for those of the template.

    Without turns the text and the spans are as they were.
    """
    if not turns:
        return text, list(spans)
    shown, moved = "", [(0, 0)] * len(spans)
    for role, start, stop in turns:
        shown += ("\n\n" if shown else "") + (f"{role.capitalize()}: " if len(turns) > 1 else "")
        shift = len(shown) - start
        for n, (begin, end) in enumerate(spans):
            if max(begin, start) < min(end, stop):
                moved[n] = max(begin, start) + shift, min(end, stop) + shift
        shown += text[start:stop]
    return shown, moved


def role_labels(turns: Sequence[RecordedTurn]) -> list[Span]:
    """Where the name of each turn's role stands in the text of `by_role`; nowhere unless there are several."""
    found, at = [], 0
    for role, start, stop in turns if len(turns) > 1 else ():
        at += 2 if found else 0
        found.append((at, at + len(role)))
        at += len(role) + len(": ") + stop - start
    return found
