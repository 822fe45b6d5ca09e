"""Evaluation: responses to held-out prompts, and numbers per response."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate.utils import gather_object

from cagsr.metrics.slots import slot_metrics
from cagsr.policy.policy import Policy, Reference
from cagsr.policy.sampling import Sampling
from cagsr.reward import Reward
from cagsr.tasks.task import Checker
from cagsr.types import Evidence, Prompt, Rollout
from cagsr.world import World

__all__ = ["Answers", "Evaluator", "answer", "best_of", "measure_signals", "values_of"]


@dataclass(frozen=True)
class Answers:
    """K responses to each of P prompts: texts [P][K], tokens and finished [P K], raw signals [P K C] or None."""

    responses: list[list[str]]
    tokens: np.ndarray
    finished: np.ndarray
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
    """Responses of all prompts, on every process; each process writes its share. ``measure`` gives [n C]."""
    mine = list(range(world.rank, len(prompts), world.size))
    found: list[tuple] = []
    for start in range(0, len(mine), prompts_per_pass):
        indices = mine[start : start + prompts_per_pass]
        rollout = policy.sample([prompts[i] for i in indices], sampling, seed)
        k = rollout.group_size
        signals = None if measure is None else measure(rollout).cpu().view(len(indices), k, -1).numpy()
        lengths, finished = rollout.lengths.cpu().view(-1, k), rollout.finished.cpu().view(-1, k)
        for position, index in enumerate(indices):
            texts = rollout.responses[position * k : (position + 1) * k]
            row_signals = None if signals is None else signals[position]
            found.append((index, texts, lengths[position].numpy(), finished[position].numpy(), row_signals))
    ordered = sorted(gather_object(found), key=lambda item: item[0])
    return Answers(
        responses=[item[1] for item in ordered],
        tokens=np.stack([item[2] for item in ordered]),
        finished=np.stack([item[3] for item in ordered]),
        signals=None if measure is None else np.stack([item[4] for item in ordered]),
    )


def measure_signals(
    reward: Reward,
    observer: Policy | Reference,
    salience: Callable[[Rollout], torch.Tensor],
) -> Callable[[Rollout], torch.Tensor]:
    """The raw signals [n C] of a rollout, for `answer`."""

    def measure(rollout: Rollout) -> torch.Tensor:
        return reward.measure(Evidence(rollout, observer.observe(rollout), salience(rollout)))

    return measure


def best_of(answers: Answers, reward: Reward) -> Answers:
    """The candidate of highest reward for each prompt: what the reward gains without any training."""
    assert answers.signals is not None, "best_of needs signals: answer(..., measure=...)"
    count, k, columns = answers.signals.shape
    rewards = reward.combine(torch.from_numpy(answers.signals.reshape(-1, columns)), k).view(count, k)
    best = rewards.argmax(1).numpy()
    rows = np.arange(count)
    return Answers(
        responses=[[texts[i]] for texts, i in zip(answers.responses, best, strict=True)],
        tokens=answers.tokens[rows, best][:, None],
        finished=answers.finished[rows, best][:, None],
        signals=answers.signals[rows, best][:, None],
    )


def values_of(answers: Answers, prompts: Sequence[Prompt], checker: Checker | None) -> dict[str, np.ndarray]:
    """Metric name -> [P], each the mean over a prompt's K responses.

    Always: length (tokens), finished. With a checker: the slot metrics of `cagsr.metrics.slots`.
    """
    values = {"length": answers.tokens.mean(1).astype(float), "finished": answers.finished.mean(1)}
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
        "finished": values["finished"]
    }


class Evaluator:
    """Evaluates the policy as it stands on the same prompts each time: what the trainer calls.

    ``reward`` is comparable between calls: each standardised signal is measured in standard deviations of the
    base's responses from their mean, each raw one, and each in which the base's responses do not differ, as it
    is, relative to the first call. So the base is 0.
    """

    def __init__(
        self,
        policy: Policy,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        reward: Reward,
        measure: Callable[[Rollout], torch.Tensor],
        checker: Checker | None,
        world: World,
        prompts_per_pass: int,
    ):
        self.policy, self.prompts, self.sampling, self.reward = policy, prompts, sampling, reward
        self.measure, self.checker, self.world, self.prompts_per_pass = (
            measure,
            checker,
            world,
            prompts_per_pass,
        )
        self.start: dict[str, list[float]] | None = None

    def __call__(self) -> dict[str, float]:
        answers = answer(
            self.policy,
            self.prompts,
            self.sampling,
            world=self.world,
            prompts_per_pass=self.prompts_per_pass,
            measure=self.measure,
        )
        assert answers.signals is not None
        signals = answers.signals.reshape(-1, answers.signals.shape[-1]).astype(float)
        if self.start is None:
            self.start = {"mean": signals.mean(0).tolist(), "spread": signals.std(0).tolist()}
        spread = np.array(self.start["spread"])
        # No greedy response of a good base repeats itself: that spread of 0 is no unit to measure in.
        raw = np.array([term.standardise == "none" for term in self.reward.terms]) | (spread < 1e-6)
        weights = np.array([term.weight for term in self.reward.terms]) / np.where(raw, 1.0, spread)
        moved = signals.mean(0) - self.start["mean"]
        values = values_of(answers, self.prompts, self.checker)
        return {
            "reward": float(weights @ moved),
            **{name: float(value.mean()) for name, value in values.items()},
        }
