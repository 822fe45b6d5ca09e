"""Truncation of a prompt that is too long: the user's words are cut, the template and the special tokens stay."""

from collections.abc import Iterator
from dataclasses import replace

from cagsr.types import Prompt, Turn

__all__ = ["content_tokens", "truncated"]


def content_tokens(prompt: Prompt) -> Iterator[int]:
    """Indices of the tokens that cover some of the user's text, in order."""
    for token, (start, end) in enumerate(prompt.offsets):
        if start < end and any(start < last and first < end for first, last in prompt.content):
            yield token


def truncated(prompt: Prompt, limit: int, left: bool) -> Prompt | None:
    """Truncate a prompt to ``limit`` tokens: the user's words are cut, never template, special tokens or a character.

    None when nothing of the user's last turn would be left, which is the question.
    """
    content = list(content_tokens(prompt))
    excess = len(prompt.ids) - limit
    # A character may be several tokens, bytes say, each of which spans all of it: they go or stay together.
    while excess < len(content) and _is_within_character(prompt, content, excess if left else -excess):
        excess += 1
    if excess >= len(content):
        return None
    gone = set(content[:excess] if left else content[-excess:])
    if left:
        first, last = 0, prompt.offsets[content[excess]][0]
    else:
        first, last = prompt.offsets[content[-excess - 1]][1], len(prompt.text)
    cuts = [(max(start, first), min(end, last)) for start, end in prompt.content]
    cuts = [(start, end) for start, end in cuts if start < end]

    def moved(span: tuple[int, int]) -> tuple[int, int]:
        start, end = (
            position - sum(min(max(position, begin), stop) - begin for begin, stop in cuts)
            for position in span
        )
        return start, end

    kept = [token for token in range(len(prompt.ids)) if token not in gone]
    text, position = "", 0
    for begin, stop in cuts:
        text, position = text + prompt.text[position:begin], stop
    turns = [Turn(role, *moved((start, stop))) for role, start, stop in prompt.turns]
    cut = replace(
        prompt,
        text=text + prompt.text[position:],
        ids=tuple(prompt.ids[token] for token in kept),
        offsets=tuple(moved(prompt.offsets[token]) for token in kept),
        turns=tuple(turns),
        spelt=tuple(moved(span) for span in prompt.spelt),
    )
    return cut if cut.written(("last-user",)) else None


def _is_within_character(prompt: Prompt, content: list[int], cut: int) -> bool:
    """Whether the content tokens on both sides of position ``cut`` belong to one character."""
    return prompt.offsets[content[cut]][0] < prompt.offsets[content[cut - 1]][1]
