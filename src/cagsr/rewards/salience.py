"""Salience: weights of the prompt tokens that a response ought to cover.

A salience is called with a rollout and gives ``w [P S]``: rows sum to 1, or are all 0 where a prompt has no
content token. Which side is padded does not matter; the prompt mask says where the tokens stand.
"""

__all__ = [
    "STOP_WORDS",
    "Column",
    "Idf",
    "Pieces",
    "Salience",
    "Span",
    "Uniform",
    "build_salience",
    "demand_content",
    "evidence_of",
]

import math
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from cagsr.config import Config
from cagsr.data.words import prompt_words
from cagsr.errors import InputError
from cagsr.rewards.contrasts import Contrasts
from cagsr.rewards.pieces import Common, pieces
from cagsr.rewards.presets import as_read
from cagsr.types import Evidence, Observation, Observer, Prompt, Rollout

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
# The question: what is said before it, and by whom, is no matter that an answer has to cover.
ROLES = ("last-user",)


class Salience(ABC):
    """Base class of saliences: weights of prompt tokens, normalised per prompt."""

    def __call__(self, rollout: Rollout) -> Tensor:
        """[P S] float32 >= 0, 0 at padding, special tokens and template; rows sum to 1 or are all 0."""
        mask_PS = rollout.prompt_mask.cpu()
        weights_PS = torch.zeros(mask_PS.shape, dtype=torch.float64)
        for row, prompt in enumerate(rollout.prompts):
            weights_PS[row, mask_PS[row]] = torch.tensor(self.weigh(prompt), dtype=torch.float64)
        total_P1 = weights_PS.sum(-1, keepdim=True)
        return (weights_PS / total_P1.where(total_P1 > 0, 1)).to(rollout.prompt_mask.device, torch.float32)

    def without_content(self, prompts: Iterable[Prompt]) -> list[int]:
        """The indices of the prompts without any salient token, whose coverage is 0 for every response.

        Weighs every prompt, so that a salience raises its errors about rows of data here, before a run.
        """
        return [prompt.index for prompt in prompts if not any(self.weigh(prompt))]

    def uncovered(self, prompts: Sequence[Prompt]) -> str | None:
        """What to say of the prompts `without_content`; None where there is none."""
        empty = len(self.without_content(prompts))
        if not empty:
            return None
        return (
            f"{empty} of {len(prompts)} prompts ({empty / len(prompts):.0%}) have no content token, so no response can "
            "cover them"
        )

    @abstractmethod
    def weigh(self, prompt: Prompt) -> list[float]:
        """One weight >= 0 for each of ``prompt.ids``, not normalised."""

    def divide(self, prompt: Prompt) -> list[list[int]] | None:
        """The tokens of each piece of the prompt; None where runs of salient tokens are the pieces."""
        return None

    def contrasts(self, rollout: Rollout) -> list[dict[int, tuple[int, ...]]] | None:
        """Each prompt's tokens with another value in a piece, by the piece's number (`rewards.contrasts`).

        None where the data set has no values that could be exchanged.
        """
        return None

    def pieces(self, rollout: Rollout) -> Tensor | None:
        """[P J S] bool: `divide` for each prompt, all False beyond its last piece; None where it says nothing."""
        divided = [self.divide(prompt) for prompt in rollout.prompts]
        if any(each is None for each in divided):
            return None
        mask_PS = rollout.prompt_mask.cpu()
        found_PJS = torch.zeros(
            len(mask_PS), max(1, *(len(each or ()) for each in divided)), mask_PS.shape[1]
        ).bool()
        for row, each in enumerate(divided):
            columns = mask_PS[row].nonzero().squeeze(-1)
            for number, tokens in enumerate(each or ()):
                found_PJS[row, number, columns[tokens]] = True
        return found_PJS.to(rollout.prompt_mask.device)


def evidence_of(
    rollout: Rollout,
    observation: Observation,
    salience: Callable[[Rollout], Tensor],
    observer: Observer | None = None,
) -> Evidence:
    """What a signal is given: the rollout, what was observed of it, its salient tokens, its pieces and contrasts."""
    knows = isinstance(salience, Salience)
    pieces_PJS, contrasts = (salience.pieces(rollout), salience.contrasts(rollout)) if knows else (None, None)
    return Evidence(rollout, observation, salience(rollout), observer, pieces_PJS, contrasts)


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
        inside = _tokens_in(prompt, spans)
        return [weight * (token in inside) for token, weight in enumerate(super().weigh(prompt))]


class Column(Salience):
    """Salience of the words and phrases that a column of the user's data lists for each prompt.

    ``prompt.row[name]`` is a list of texts, each of which must occur in a turn, whoever wrote it, whole words in
    either case; all its occurrences count, stop words and punctuation inside them too.

    Raises InputError naming the row when the column is missing, is no list of texts, or lists what the
    prompt does not say.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def weigh(self, prompt: Prompt) -> list[float]:
        spans = [span for phrase in self._phrases(prompt) for span in self._occurrences(phrase, prompt)]
        inside = _tokens_in(prompt, spans)
        return [float(token in inside) for token in range(len(prompt.ids))]

    def _phrases(self, prompt: Prompt) -> list[str]:
        if self.name not in prompt.row:
            columns = ", ".join(map(repr, prompt.row)) or "none"
            raise InputError(
                f"row {prompt.index + 1}: no salience column {self.name!r}; this row's columns: {columns}. "
                "Correct data.salience_column."
            )
        phrases = prompt.row[self.name]
        if not isinstance(phrases, Sequence) or isinstance(phrases, str):
            raise InputError(
                f"row {prompt.index + 1}: salience column {self.name!r} must be a list of words or phrases "
                f"of the prompt, got {type(phrases).__name__}"
            )
        for phrase in phrases:
            if not isinstance(phrase, str) or not phrase.strip():
                raise InputError(
                    f"row {prompt.index + 1}: salience column {self.name!r} must list words or phrases, "
                    f"got {phrase!r}"
                )
        return list(phrases)

    def _occurrences(self, phrase: str, prompt: Prompt) -> list[tuple[int, int]]:
        pattern = re.compile(rf"(?<!\w){re.escape(phrase.strip())}(?!\w)", re.IGNORECASE)
        spans = [match.span() for part in prompt.written() for match in pattern.finditer(prompt.text, *part)]
        if not spans:
            raise InputError(
                f"row {prompt.index + 1}: salience column {self.name!r} lists {phrase!r}, "
                "which the prompt does not say; correct it or remove it"
            )
        return spans


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
        self._contrasts = Contrasts(prompts, self.divide)

    def contrasts(self, rollout: Rollout) -> list[dict[int, tuple[int, ...]]] | None:
        return [self._contrasts.of(prompt) for prompt in rollout.prompts] if self._contrasts else None

    def divide(self, prompt: Prompt) -> list[list[int]]:
        # Asked for at every step, for the weights and for the pieces.
        key = (prompt.text, prompt.turns)
        if key not in self._known:
            self._known[key] = self._divide(prompt)
        return self._known[key]

    def _divide(self, prompt: Prompt) -> list[list[int]]:
        spans = pieces(prompt.text, prompt.written(self.roles), self.common)
        found = _tokens_of_each(prompt, spans)
        # A token that two pieces share ("," and a quote in one) belongs to the first.
        taken = set[int]()
        alone = [
            [token for token in tokens if token not in taken and not taken.add(token)] for tokens in found
        ]
        alone = [tokens for tokens in alone if tokens]
        together = math.ceil(len(alone) / self.most) or 1
        return [list(chain(*alone[first : first + together])) for first in range(0, len(alone), together)]

    def weigh(self, prompt: Prompt) -> list[float]:
        weights = [0.0] * len(prompt.ids)
        for tokens in self.divide(prompt):
            for token in tokens:
                weights[token] = 1 / len(tokens)
        return weights


def _tokens_in(prompt: Prompt, spans: Sequence[tuple[int, int]]) -> set[int]:
    """The tokens that cover some character of the spans. Empty offsets, of special tokens, cover none."""
    return {
        token
        for token, (start, end) in enumerate(prompt.offsets)
        if start < end and any(start < span_end and span_start < end for span_start, span_end in spans)
    }


def _tokens_of_each(prompt: Prompt, spans: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The tokens of each of the spans, which are in order and apart, as of `_tokens_in`, in one pass over the text."""
    at: list[list[int]] = [[] for _ in prompt.text]
    for token, (start, end) in enumerate(prompt.offsets):
        for position in range(start, end):
            at[position].append(token)
    return [sorted({token for place in at[start:stop] for token in place}) for start, stop in spans]


def demand_content(salience: Salience, prompts: Sequence[Prompt]) -> None:
    """Raise InputError where what was asked for (a span, a column's parts, roles, pieces) is in none of the prompts."""
    roles = getattr(salience, "roles", ROLES)
    if isinstance(salience, Span):
        kind, mend = "span", "Correct its start, end or pattern"
    elif isinstance(salience, Column):
        kind, mend = "column", "Correct its list"
    elif tuple(roles) != ROLES:
        there = sorted({turn.role for prompt in prompts for turn in prompt.turns})
        kind, mend = "roles", f"Set reward.salience.roles; the prompts have turns of {', '.join(there)}"
    elif isinstance(salience, Pieces):
        kind, mend = "pieces", "Set reward.salience.kind: uniform"
    else:
        return
    if len(salience.without_content(prompts)) == len(prompts):
        raise InputError(
            f"salience {kind}: none of {len(prompts)} prompts has a token that counts, so every response would cover "
            f"nothing. {mend}; the first prompt is {prompts[0].text!r:.160}"
        )


def build_salience(config: Config, prompts: Sequence[Prompt]) -> Salience:
    """Build the salience of ``reward.salience``, or the preset's; document frequencies are those of ``prompts``.

    Raises InputError as `demand_content` does.
    """
    given = as_read(config).reward.salience
    salience: Salience = Uniform(roles=given.roles)
    if given.kind == "idf":
        salience = Idf(prompts, power=given.power, roles=given.roles)
    elif given.kind == "span":
        salience = Span(given.start, given.end, given.pattern, roles=given.roles)
    elif given.kind == "pieces":
        salience = Pieces(prompts, given.most, given.roles)
    elif given.kind == "column":
        salience = Column(str(config.data.salience_column))
    demand_content(salience, prompts)
    return salience
