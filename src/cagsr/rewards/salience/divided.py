"""Salience of the pieces that people write: list items, fields, clauses."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import Any

from cagsr.rewards.contrasts import Contrasts
from cagsr.rewards.pieces import Common, pieces
from cagsr.rewards.salience.base import ROLES, Salience
from cagsr.types import Prompt

__all__ = ["Pieces"]


class Pieces(Salience):
    """Salience of the pieces of a prompt (`rewards.pieces`): each weighs the same, and each of its tokens does.

    ``roles`` name the turns that count. What ``prompts`` have in common is no piece. Of more than ``most`` pieces,
    neighbours are taken together.
    """

    def __init__(self, prompts: Iterable[Prompt], most: int = 24, roles: Collection[str] = ROLES) -> None:
        self.most, self.roles = most, roles
        self._known: dict[tuple[str, Any], list[list[int]]] = {}
        prompts = list(prompts)
        self.common = Common(
            "\n".join(prompt.text[start:stop] for start, stop in prompt.written(roles)) for prompt in prompts
        )
        self._prompts = prompts

    @cached_property
    def _contrasts(self) -> Contrasts:
        # All prompts are divided for it, which takes seconds where there are thousands, and not every reward asks.
        return Contrasts(self._prompts, self._apart)

    @property
    def contrasts(self) -> Callable[[Prompt], Mapping[int, Sequence[int]]] | None:
        return self._contrasts.of if self._contrasts else None

    def divide(self, prompt: Prompt) -> list[list[int]]:
        apart = self._apart(prompt)
        together = math.ceil(len(apart) / self.most) or 1
        return [list(chain(*apart[first : first + together])) for first in range(0, len(apart), together)]

    def _apart(self, prompt: Prompt) -> list[list[int]]:
        """The tokens of each piece, before neighbours are taken together."""
        # Asked for at every step, for the weights and for the pieces.
        key = (prompt.text, prompt.turns)
        if key not in self._known:
            spans = pieces(prompt.text, prompt.written(self.roles), self.common)
            # A token that two pieces share ("," and a quote in one) belongs to the first.
            taken = set[int]()
            found = [
                [token for token in tokens if token not in taken and not taken.add(token)]
                for tokens in _tokens_of_each(prompt, spans)
            ]
            self._known[key] = [tokens for tokens in found if tokens]
        return self._known[key]

    def weigh(self, prompt: Prompt) -> list[float]:
        weights = [0.0] * len(prompt.ids)
        for tokens in self.divide(prompt):
            for token in tokens:
                weights[token] = 1 / len(tokens)
        return weights


def _tokens_of_each(prompt: Prompt, spans: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The tokens of each of the spans, which are in order and apart, as of `tokens_in`, in one pass over the text."""
    at: list[list[int]] = [[] for _ in prompt.text]
    for token, (start, end) in enumerate(prompt.offsets):
        for position in range(start, end):
            at[position].append(token)
    return [sorted({token for place in at[start:stop] for token in place}) for start, stop in spans]
