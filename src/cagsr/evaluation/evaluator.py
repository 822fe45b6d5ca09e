"""Evaluation of a policy on held-out prompts: responses, and metrics of each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from cagsr.config.schema import Sampling
from cagsr.distributed.process_group import World
from cagsr.metrics.bootstrap import interval
from cagsr.metrics.slots import slot_metrics
from cagsr.models.policy import Policy
from cagsr.models.reference import Reference
from cagsr.rewards.reward import Reward
from cagsr.rewards.salience import evidence_of
from cagsr.rewards.signals.repetition import repeated_ngrams
from cagsr.runs.turns import recorded
from cagsr.tasks.task import Checker
from cagsr.types import Prompt, Rollout

__all__ = [
    "Answers",
    "Evaluator",
    "answer",
    "best_by_reward",
    "measure_signals",
    "read_by",
    "response_rows",
    "spread_of",
    "values_of",
]

SPREAD_PROMPTS = 50


@dataclass(frozen=True)
class Answers:
    """Responses, K to each of P prompts: texts [P][K], raw signals [P K C] or None, and [P K] each of the others.

    ``repeated`` is the share of repeated trigrams.
    """

    responses: list[list[str]]
    tokens: np.ndarray
    finished: np.ndarray
    repeated: np.ndarray
    signals: np.ndarray | None = None


@torch.no_grad()
def answer(
    policy: Policy,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    world: World,
    prompts_per_pass: int,
    seed: int = 0,
    measure: Callable[[Rollout], torch.Tensor] | None = None,
) -> Answers:
    """Sample responses to all prompts, on every process; each process samples its share. ``measure`` gives [n C]."""
    mine = list(range(world.rank, len(prompts), world.size))
    found: list[tuple] = []
    for start in range(0, len(mine), prompts_per_pass):
        indices = mine[start : start + prompts_per_pass]
        rollout = policy.sample([prompts[i] for i in indices], sampling, seed)
        k = rollout.group_size
        signals = None if measure is None else measure(rollout).cpu().view(len(indices), k, -1).numpy()
        per_response = (rollout.lengths, rollout.finished, repeated_ngrams(rollout))
        counted = [values.cpu().view(-1, k).numpy() for values in per_response]
        for position, index in enumerate(indices):
            texts = rollout.responses[position * k : (position + 1) * k]
            row_signals = None if signals is None else signals[position]
            found.append((index, texts, *(values[position] for values in counted), row_signals))
    ordered = sorted(world.joined(found), key=lambda item: item[0])
    return Answers(
        responses=[item[1] for item in ordered],
        tokens=np.stack([item[2] for item in ordered]),
        finished=np.stack([item[3] for item in ordered]),
        repeated=np.stack([item[4] for item in ordered]),
        signals=None if measure is None else np.stack([item[5] for item in ordered]),
    )


def measure_signals(
    reward: Reward, observer: Policy | Reference, salience: Callable[[Rollout], torch.Tensor]
) -> Callable[[Rollout], torch.Tensor]:
    """A function that gives the raw signals [n C] of a rollout, for `answer`."""

    wanted = reward.wanted(salience)

    def measure(rollout: Rollout) -> torch.Tensor:
        return reward.measure(evidence_of(rollout, observer.observe(rollout, wanted), salience, observer))

    return measure


def read_by(observer: Policy, rollout: Rollout, prompts: list[Prompt]) -> Rollout:
    """The same responses in the observer's tokens; ``prompts`` are the rollout's, encoded for the observer.

    An end is written only where the response had one, and a response is cut where the observer has no positions
    left for it.
    """
    limits = [observer.response_limit, max(len(row) for row in observer.encode(rollout.responses))]
    if observer.readable.kind == "causal" and observer.context is not None:
        limits.append(observer.context - max(len(prompt.ids) for prompt in prompts))
    limit = min(limit for limit in limits if limit is not None)
    given = observer.given(prompts, rollout.responses, limit, rollout.finished.tolist())
    return replace(given, finished=rollout.finished.to(observer.device))


def spread_of(
    policy: Policy,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    reward: Reward,
    measure: Callable[[Rollout], torch.Tensor],
    *,
    world: World,
    prompts_per_pass: int,
) -> torch.Tensor:
    """[C] the unit of each signal: its spread among sampled responses to one of the first SPREAD_PROMPTS prompts.

    Sampled, as in training: greedy responses of different prompts hardly tell how much a policy varies.
    """
    sampled = answer(
        policy,
        prompts[:SPREAD_PROMPTS],
        sampling,
        world=world,
        prompts_per_pass=max(1, prompts_per_pass // sampling.candidates),
        measure=measure,
    )
    assert sampled.signals is not None
    return reward.spread(torch.from_numpy(sampled.signals).flatten(0, 1), sampling.candidates)


def best_by_reward(answers: Answers, reward: Reward) -> Answers:
    """Best-of-K: the candidate of highest reward for each prompt, the reward's gain without any training."""
    assert answers.signals is not None, "best_by_reward needs signals: answer(..., measure=...)"
    count, k, columns = answers.signals.shape
    rewards = reward.combine(torch.from_numpy(answers.signals.reshape(-1, columns)), k).view(count, k)
    best = rewards.argmax(1).numpy()
    rows = np.arange(count)
    return Answers(
        responses=[[texts[i]] for texts, i in zip(answers.responses, best, strict=True)],
        tokens=answers.tokens[rows, best][:, None],
        finished=answers.finished[rows, best][:, None],
        repeated=answers.repeated[rows, best][:, None],
        signals=answers.signals[rows, best][:, None],
    )


def values_of(answers: Answers, prompts: Sequence[Prompt], checker: Checker | None) -> dict[str, np.ndarray]:
    """Metrics of answers: name -> [P], each the mean over a prompt's K responses.

    Always: length (tokens), finished, repeated_trigrams. With a checker: the slot metrics of `cagsr.metrics.slots`.
    """
    values = {
        "length": answers.tokens.mean(1).astype(float),
        "finished": answers.finished.mean(1),
        "repeated_trigrams": answers.repeated.mean(1).astype(float),
    }
    if checker is None:
        return values
    k = answers.tokens.shape[1]
    checks = [
        checker.check(prompt.row, text)
        for prompt, texts in zip(prompts, answers.responses, strict=True)
        for text in texts
    ]
    metrics = slot_metrics(checks, answers.tokens.reshape(-1).tolist())
    return {name: value.reshape(-1, k).mean(1) for name, value in metrics.items()} | {
        name: values[name] for name in ("finished", "repeated_trigrams")
    }


def response_rows(
    prompts: Sequence[Prompt], answers: Answers, values: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Rows of responses.jsonl and evaluations.jsonl: each prompt and its turns, its first response, and every
    metric [P] of it."""
    return [
        {
            "prompt": prompt.text,
            **recorded(prompt.text, prompt.turns),
            "response": texts[0],
            **{metric: float(value[position]) for metric, value in values.items()},
        }
        for position, (prompt, texts) in enumerate(zip(prompts, answers.responses, strict=True))
    ]


@dataclass(eq=False)
class Evaluator:
    """Evaluation of the current policy, always on the same prompts, for the training loop.

    Responses are greedy. ``reward`` is comparable between calls: what each signal moved from its mean at the first
    call, a standardised one in the spread of the base's sampled responses. So the base is 0. ``prompts_per_pass``
    is also how many responses are sampled at once.

    Of the last call it keeps ``ends``, the 95 % intervals over prompts (``NAME/low`` and ``NAME/high``), and ``rows``,
    as of `response_rows`.
    """

    policy: Policy
    prompts: Sequence[Prompt]
    sampling: Sampling
    reward: Reward
    measure: Callable[[Rollout], torch.Tensor]
    checker: Checker | None
    world: World
    prompts_per_pass: int
    start: dict[str, list[float]] | None = None
    ends: dict[str, float] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self) -> dict[str, float]:
        how = {"world": self.world, "prompts_per_pass": self.prompts_per_pass}
        answers = answer(self.policy, self.prompts, self.sampling.greedy(), measure=self.measure, **how)
        assert answers.signals is not None
        mean = torch.from_numpy(answers.signals).double().flatten(0, 1).mean(0)
        if self.start is None:
            spread = spread_of(self.policy, self.prompts, self.sampling, self.reward, self.measure, **how)
            self.start = {"mean": mean.tolist(), "spread": spread.tolist()}
        start = {name: torch.tensor(value, dtype=torch.float64) for name, value in self.start.items()}
        values = values_of(answers, self.prompts, self.checker)
        # The relative reward is linear in the signals: that of the mean is the mean of each prompt's.
        rewards = self.reward.relative(torch.from_numpy(answers.signals).double().mean(1), **start).numpy()
        measured = {"reward": rewards, **values}
        self.ends, self.rows = {}, response_rows(self.prompts, answers, measured)
        for name, value in measured.items():
            found = interval(value)
            if len(value) > 1:
                self.ends |= {f"{name}/low": found.low, f"{name}/high": found.high}
        return {
            "reward": float(self.reward.relative(mean, **start)),
            **{name: float(value.mean()) for name, value in values.items()},
        }
