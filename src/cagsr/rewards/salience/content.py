"""Salience of content words: all alike, rare words more, or those of a span alone."""

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable

from cagsr.data.words import STOP_WORDS, prompt_words
from cagsr.errors import InputError
from cagsr.rewards.salience.base import ROLES, Salience, tokens_in
from cagsr.types import Prompt

__all__ = ["Idf", "Span", "Uniform"]


class Uniform(Salience):
    """Uniform salience: 1 for every content token, part of a word of the last user turn that is no stop word.

    ``roles`` name the turns that count (`Prompt.written`).

    Template, special tokens and punctuation are no content. A subword token belongs to its whole word, so
    the first piece of "therapist" is content even when it reads "the".

    Source: on real text uniform weights were better than inverse document frequencies.
    """

    def __init__(self, stop_words: Iterable[str] = STOP_WORDS, roles: Collection[str] = ROLES) -> None:
        self.stop_words, self.roles = frozenset(word.casefold() for word in stop_words), roles

    def weigh(self, prompt: Prompt) -> list[float]:
        weights = [0.0] * len(prompt.ids)
        for word in prompt_words(prompt, self.roles):
            if word.key not in self.stop_words:
                for token in word.tokens:
                    weights[token] = 1.0
        return weights


class Idf(Uniform):
    """Salience ``log((1 + D) / (1 + D_w)) ** power`` of content tokens: D unlabelled prompts, D_w with the word.

    A word that stands in every prompt weighs 0. A token that spans several words weighs its rarest.
    Power 0 is uniform. Raises InputError without prompts, or for a power that is negative.
    """

    def __init__(
        self,
        prompts: Iterable[Prompt],
        power: float = 1.0,
        stop_words: Iterable[str] = STOP_WORDS,
        roles: Collection[str] = ROLES,
    ) -> None:
        super().__init__(stop_words, roles)
        if not 0 <= power < math.inf:
            raise InputError(f"salience idf: power must be a number of at least 0, got {power!r}")
        self.power = power
        self.frequencies: Counter[str] = Counter()
        self.documents = 0
        for prompt in prompts:
            self.documents += 1
            self.frequencies.update({word.key for word in prompt_words(prompt, roles)})
        if not self.documents:
            raise InputError("salience idf: needs prompts to count document frequencies in, got none")

    def weigh(self, prompt: Prompt) -> list[float]:
        weights = [0.0] * len(prompt.ids)
        for word in prompt_words(prompt, self.roles):
            if word.key in self.stop_words:
                continue
            rarity = math.log((1 + self.documents) / (1 + self.frequencies[word.key])) ** self.power
            for token in word.tokens:
                weights[token] = max(weights[token], rarity)
        return weights


class Span(Uniform):
    """Salience of content tokens inside some part of the prompt's text: only the question, only the instruction.

    The part is every stretch between the marker ``start`` (or the beginning) and the next ``end`` (or the
    end), markers excluded; or every match of the regular expression ``pattern``, its first group if it has
    one. A prompt without such a part has no content token.

    Raises InputError for a broken pattern, and unless either markers or a pattern are given.
    """

    def __init__(
        self,
        start: str | None = None,
        end: str | None = None,
        pattern: str | None = None,
        stop_words: Iterable[str] = STOP_WORDS,
        roles: Collection[str] = ROLES,
    ) -> None:
        super().__init__(stop_words, roles)
        if bool(start or end) == bool(pattern):
            raise InputError("salience span: give either start and/or end, or pattern")
        if not pattern:
            begins = re.escape(start) if start else r"\A"
            ends = rf"(?:{re.escape(end)}|\Z)" if end else r"\Z"
            pattern = rf"(?s){begins}(.*?){ends}"
        try:
            self.pattern = re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise InputError(f"salience span: pattern {pattern!r} is broken, correct it: {error}") from error

    def weigh(self, prompt: Prompt) -> list[float]:
        group = 1 if self.pattern.groups else 0
        spans = [match.span(group) for match in self.pattern.finditer(prompt.text)]
        inside = tokens_in(prompt, spans)
        return [weight * (token in inside) for token, weight in enumerate(super().weigh(prompt))]
