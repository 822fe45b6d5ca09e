"""Shared types of the program (prompt, rollout, observation, evidence, batch) and their shapes.

Axes: P prompts, K candidates per prompt, N = P * K rows, S prompt tokens, T response tokens, V vocabulary,
C signals. Row ``n`` of every ``[N ...]`` tensor belongs to prompt ``n // K``.

A prompt is kept once per group, not K times: it is computed once for its K responses, which is where the speed
comes from.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

Span = tuple[int, int]
"""Where a stretch of a text begins and ends, in characters."""


class Turn(NamedTuple):
    """One turn of a conversation: whose it is, and its characters in ``Prompt.text``, ``start`` to ``stop``."""

    role: str
    start: int
    stop: int


@dataclass(frozen=True)
class Prompt:
    """One prompt, tokenized as the model reads it.

    ``text`` is what was tokenised (after any chat template) and ``ids`` the tokens, special ones included.
    ``offsets[j]`` is the character span of token j in ``text``; ``(0, 0)`` for tokens that stand for no text.
    ``turns`` are what somebody wrote, in its order; a plain text is one turn of ``user``. The rest is template.
    ``spelt`` are the character spans of special tokens that a turn spells: they are never to be covered.
    ``index`` is the prompt's position in its data set: sampling draws its random numbers from it.
    ``occurrence`` tells apart the same prompt's places in one step, which draw different numbers: 0 is the first.
    ``row`` is the data row it came from (reference, slots, messages ...), untouched.
    ``template`` is what a conversation was rendered with: its tools and the variables of its chat template.
    ``part`` is the number of its data set among several, and ``weight`` that data set's, if it has one.
    """

    text: str
    ids: tuple[int, ...]
    offsets: tuple[Span, ...]
    turns: tuple[Turn, ...]
    index: int
    row: Mapping[str, Any] = field(default_factory=dict)
    occurrence: int = 0
    spelt: tuple[Span, ...] = ()
    template: Mapping[str, Any] = field(default_factory=dict)
    part: int = 0
    weight: float | None = None

    @property
    def content(self) -> tuple[Span, ...]:
        """The character spans of ``text`` that the user wrote."""
        return self.written(("user",))

    def written(self, roles: Collection[str] | None = None) -> tuple[Span, ...]:
        """The character spans that turns of these ``roles`` wrote, in order, without what is ``spelt``; None: of all.

        The role ``last-user`` stands for the last turn of ``user``.
        """
        last = max((n for n, turn in enumerate(self.turns) if turn.role == "user"), default=None)
        spans = []
        for n, (role, start, stop) in enumerate(self.turns):
            if roles is None or role in roles or (n == last and "last-user" in roles):
                for begin, end in self.spelt:
                    if start <= begin < end <= stop:
                        spans.append((start, begin))
                        start = end
                spans.append((start, stop))
        return tuple((start, stop) for start, stop in spans if start < stop)


@dataclass(frozen=True)
class Rollout:
    """P prompts and the N = P * K responses that were sampled from a policy, or given.

    prompt_ids, prompt_mask      [P S]  long, bool. Padded on the left for causal models and on the right for
                                        encoder-decoders (BART counts positions from column 0). The mask is
                                        the truth; nothing may depend on the side.
    response_ids, response_mask  [N T]  long, bool, right-padded. The end-of-sequence token a model wrote is
                                        part of its response: unmasked, trained, scored.
    finished                     [N]    bool: the response ended by itself rather than at the length limit.
    responses                    N texts, special tokens removed.
    sampled_logprobs             [N T]  log-probabilities of another engine than the policy for the tokens that it
                                        drew, 0 at padding; None where the policy sampled them.
    """

    prompts: list[Prompt]
    prompt_ids: Tensor
    prompt_mask: Tensor
    response_ids: Tensor
    response_mask: Tensor
    finished: Tensor
    responses: list[str]
    sampled_logprobs: Tensor | None = None

    @property
    def group_size(self) -> int:
        """K, the number of responses to each prompt."""
        return len(self.responses) // len(self.prompts)

    @property
    def lengths(self) -> Tensor:
        """[N] response tokens, the end-of-sequence token included."""
        return self.response_mask.sum(-1)

    def to(self, device: torch.device | str) -> "Rollout":
        """The rollout with its tensors on ``device``."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved)

    def groups(self, start: int, stop: int) -> "Rollout":
        """The part of the rollout that belongs to prompts ``start`` to ``stop``, without surplus padding."""
        return self.chosen(range(start, stop))

    def chosen(self, prompts: Sequence[int]) -> "Rollout":
        """The groups of these prompts, in this order and as often as they are named, without surplus padding."""
        k, device = self.group_size, self.response_mask.device
        rows = [prompt * k + candidate for prompt in prompts for candidate in range(k)]
        at, of = (torch.tensor(numbers, device=device) for numbers in (list(prompts), rows))
        prompt_mask, response_mask = self.prompt_mask[at], self.response_mask[of]
        columns = prompt_mask.any(0)
        width = max(int(response_mask.sum(-1).max()), 1)
        sampled = self.sampled_logprobs
        return Rollout(
            prompts=[self.prompts[prompt] for prompt in prompts],
            prompt_ids=self.prompt_ids[at][:, columns],
            prompt_mask=prompt_mask[:, columns],
            response_ids=self.response_ids[of, :width],
            response_mask=response_mask[:, :width],
            finished=self.finished[of],
            responses=[self.responses[row] for row in rows],
            sampled_logprobs=None if sampled is None else sampled[of, :width],
        )

    def split(self, groups: int) -> Iterator["Rollout"]:
        """Consecutive parts of at most ``groups`` whole groups."""
        for start in range(0, len(self.prompts), groups):
            yield self.groups(start, min(start + groups, len(self.prompts)))


@dataclass(frozen=True)
class Wanted:
    """What is to be read of a response beside the facts [N T] of its tokens; by default everything.

    by_token         the attention to each token of the prompt, [N T S]
    prompt_logprobs  [N T S]
    pieces           [P J S] of prompts and their mask [P S]: the pieces to read attention by where `Policy.observe`
                     finds [N T S] too large; None: by token. With both, ``by_token`` is read too.
    """

    by_token: bool = True
    prompt_logprobs: bool = True
    pieces: Callable[[Sequence[Prompt], Tensor], Tensor | None] | None = None


EVERYTHING = Wanted()


@dataclass(frozen=True)
class Observation:
    """What one forward pass of the observer over prompt and response gives. Float32, no gradient.

    logprobs    [N T]  log p(y_t), 0 at padding.
    confidence  [N T]  p(y_t) / max_v p(v), in (0, 1], 0 at padding.
    entropy     [N T]  nats, 0 at padding.
    certainty   [N T]  KL(uniform || p) in nats (self-certainty of Intuitor), 0 at padding.
    on_prompt          by name what was read of the prompt (`Wanted`): attention, looks, prompt_logprobs.
    """

    logprobs: Tensor
    confidence: Tensor
    entropy: Tensor
    certainty: Tensor
    on_prompt: Mapping[str, Tensor]

    @property
    def attention(self) -> Tensor:
        """[N T S] A[n, t, j]: attention from the query that predicts response token t to prompt token j.

        Mean over heads and the layers read. Raw: a row sums to at most 1, and what is missing went to the response
        itself or (causal) nowhere we read. 0 at padding. For encoder-decoders rows sum to 1.
        """
        return self._read("attention")

    @property
    def prompt_logprobs(self) -> Tensor:
        """[N T S] log p_t(x_j): the log-probability, at the step that wrote y_t, of the token in prompt column j.

        0 at padding.
        """
        return self._read("prompt_logprobs")

    @property
    def looks(self) -> Tensor | None:
        """[N T J] mean of the attention over each piece's tokens, 0 at padding; None where it was read by token."""
        return self.on_prompt.get("looks")

    def _read(self, name: str) -> Tensor:
        if name not in self.on_prompt:
            raise RuntimeError(
                f"observation.{name} was not read, because nobody was to use it (types.Wanted)"
            )
        return self.on_prompt[name]

    def of_groups(self, rollout: "Rollout", start: int, stop: int) -> "Observation":
        """The observation of ``rollout.groups(start, stop)``, taken from one of the whole ``rollout``."""
        k, columns = rollout.group_size, rollout.prompt_mask[start:stop].any(0)
        rows = slice(start * k, stop * k)
        width = max(int(rollout.response_mask[rows].sum(-1).max()), 1)
        own = {name: value[rows, :width] for name, value in vars(self).items() if name != "on_prompt"}
        read = {name: value[rows, :width] for name, value in self.on_prompt.items()}
        return Observation(
            **own,
            on_prompt={name: of if name == "looks" else of[..., columns] for name, of in read.items()},
        )


class Observer(Protocol):
    """Protocol of an observer: a model that attention and log-probabilities are read from, without gradient."""

    def observe(self, rollout: Rollout, wanted: Wanted = EVERYTHING) -> Observation: ...

    def logprobs(self, rollout: Rollout) -> Tensor:
        """[N T] log p(y_t), 0 at padding. Prompt tokens whose mask is False do not exist for the model."""
        ...


@dataclass
class Explanations:
    """What a prompt's segments are and what each explains: filled in by `rewards.segments` when a signal first asks.

    segments  [P J S]  bool: the prompt tokens of each of a prompt's J segments; all False beyond its last.
    knockout  [N T J]  nats that each response token loses without the segment; 0 at padding and for no segment.
    """

    segments: Tensor | None = None
    knockout: Tensor | None = None


@dataclass(frozen=True)
class Evidence:
    """Input of a signal: the rollout, the observation of it, and the salience of each prompt token.

        salience      [P S]  >= 0, 0 at padding and template, rows sum to 1 (or are all 0: no content token).
    observer             the observer, for signals that need further passes with another prompt; None where there is
                         none to ask.
        pieces        [P J S]  bool: the tokens of each of a prompt's pieces, where the salience knows them; None: runs
                         of salient tokens are the pieces (`rewards.segments`).
        contrasts            of a prompt, by the number of a piece, the prompt's tokens with another value in the piece
                         (`rewards.contrasts`); None where the data set has no values to exchange.
    explanations         what several signals need and is computed once for all; evidence with another part
                         (`dataclasses.replace`) begins without.
    """

    rollout: Rollout
    observation: Observation
    salience: Tensor
    observer: Observer | None = None
    pieces: Tensor | None = None
    contrasts: Callable[[Prompt], Mapping[int, Sequence[int]]] | None = None
    explanations: Explanations = field(default_factory=Explanations, init=False, compare=False, repr=False)

    def per_row(self, per_prompt: Tensor) -> Tensor:
        """[P ...] -> [N ...]: each prompt's entry repeated for its K responses."""
        return per_prompt.repeat_interleave(self.rollout.group_size, dim=0)


Signal = Callable[..., Tensor]
"""``signal(evidence, **options) -> [N]``: one number a response, higher is better."""


@dataclass(frozen=True)
class Scores:
    """Scores of a rollout: signals [N C] as measured, names of the C columns, and the reward [N] combined from them.

    ``weighted`` [N C] is what each signal added to the reward: standardised, times its weight.
    """

    names: tuple[str, ...]
    signals: Tensor
    reward: Tensor
    weighted: Tensor


class PolicyLoss(NamedTuple):
    """Policy loss: per_token [N T], to be minimised; clipped [N T] bool, the ratio is beyond the loss's bounds."""

    per_token: Tensor
    clipped: Tensor


@dataclass(frozen=True)
class TrainBatch:
    """A part of a rollout, ready for an update. All [N T] tensors are 0 where ``response_mask`` is False.

    ref_logprobs                [N T]  of the reference
    old_logprobs, entropy       [N T]  of the policy that sampled; None where the update's only pass tells them
    values                      [N T]  of the critic that sampled, or None without a critic
    advantages, returns         [N T]  None until the reward is known; returns only with a critic
    """

    rollout: Rollout
    ref_logprobs: Tensor
    old_logprobs: Tensor | None = None
    entropy: Tensor | None = None
    values: Tensor | None = None
    advantages: Tensor | None = None
    returns: Tensor | None = None

    def with_advantages(self, advantages: Tensor, returns: Tensor | None = None) -> "TrainBatch":
        """The batch with its advantages, and returns where there is a critic."""
        return replace(self, advantages=advantages, returns=returns)
