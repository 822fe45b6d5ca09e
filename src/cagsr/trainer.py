"""The schedule around `Step`: which prompts when, evaluation, checkpoints, records, the collapse watch."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any, Protocol

import torch

from cagsr import checkpoint
from cagsr.measure import measure, shuffled_share
from cagsr.policy.load import save_model
from cagsr.step import Collected, Step
from cagsr.types import Prompt
from cagsr.watch import Collapsed, Watch

__all__ = ["Evaluation", "Observer", "Schedule", "Trainer", "prompts_for"]


class Evaluation(Protocol):
    """Numbers of the policy as it stands; ``reward`` among them, 0 for the base, decides which model was best.

    ``start`` is what it measured first, to be kept when a run is continued.
    """

    start: dict[str, list[float]] | None

    def __call__(self) -> dict[str, float]: ...


@dataclass(frozen=True)
class Schedule:
    """0 for ``evaluate_every`` and ``save_every`` means: only at the end."""

    steps: int = 100
    prompts_per_step: int = 8
    evaluate_every: int = 0
    save_every: int = 0
    keep_checkpoints: int = 2
    shuffled_every: int = 10
    seed: int = 0


class Observer(Protocol):
    """What is told about a run while it goes: the run directory, the progress display, the trackers."""

    def on_step(self, step: int, row: dict[str, float], collected: Collected) -> None: ...
    def on_evaluation(self, step: int, row: dict[str, float]) -> None: ...
    def on_warning(self, step: int, message: str) -> None: ...


@dataclass
class Trainer:
    step: Step
    prompts: Sequence[Prompt]
    schedule: Schedule
    watch: Watch
    directory: Path
    evaluate: Evaluation | None = None
    observers: Sequence[Observer] = ()
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] | None = None

    def run(self, resume: bool = False) -> dict[str, Any]:
        """Train to the last step; returns ``{"steps", "best", "last"}``. The weights on disk: model/ and best/.

        Raises watch.Collapsed after saving a checkpoint, errors.NumericsError before a bad optimizer step.
        """
        done = self._resume() if resume else 0
        if done == 0:
            self._evaluate(0)
        for number in range(done, self.schedule.steps):
            try:
                self._one(number)
            except Collapsed:  # raised after the update, so the step counts
                self._save(number + 1)
                raise
            self._after(number + 1)
        self._save_model("model")
        if self.best is not None and self.best["reward"] <= 0:
            message = "no evaluation was better than the base by the reward itself; look before you use best/"
            for observer in self.observers:
                observer.on_warning(self.schedule.steps, message)
        return {"steps": self.schedule.steps, "best": self.best, "last": self.history[-1:]}

    def _one(self, number: int) -> None:
        started = time.perf_counter()
        schedule, world = self.schedule, self.step.world
        prompts = prompts_for(self.prompts, number, schedule.prompts_per_step, schedule.seed)
        collected = self.step.collect(world.share(prompts), seed=step_seed(schedule.seed, number))
        row = measure(collected, world)
        if number % schedule.shuffled_every == 0:
            share = shuffled_share(self.step, collected)
            if share is not None:
                row["shuffled"] = share
        row["learning_rate"] = float(self.step.scheduler.get_last_lr()[0])
        row["kl_coefficient"] = self.step.leash.coefficient
        row |= self.step.update(collected.batches)
        self.step.leash.observe(row["kl_response"], schedule.prompts_per_step * self.step.sampling.candidates)
        row["seconds"] = time.perf_counter() - started
        row["tokens_per_second"] = row["tokens"] / row["seconds"]
        for observer in self.observers:
            observer.on_step(number + 1, row, collected)
        for message in self.watch.check(number + 1, row):
            for observer in self.observers:
                observer.on_warning(number + 1, message)

    def _after(self, step: int) -> None:
        schedule = self.schedule
        last = step == schedule.steps
        if last or (schedule.evaluate_every and step % schedule.evaluate_every == 0):
            self._evaluate(step)
        if last or (schedule.save_every and step % schedule.save_every == 0):
            self._save(step)

    def _evaluate(self, step: int) -> None:
        if self.evaluate is None:
            return
        row = {"step": float(step), **self.evaluate()}
        self.history.append(row)
        for observer in self.observers:
            observer.on_evaluation(step, row)
        # Step 0 is the base: it is never the best of a training run, and its reward is 0 by definition.
        if step and (self.best is None or row["reward"] > self.best["reward"]):
            self.best = row
            self._save_model("best")

    def _save_model(self, name: str) -> None:
        if self.step.accelerator.is_main_process:
            save_model(self.step.policy, self.directory / name)
        self.step.accelerator.wait_for_everyone()

    def _save(self, step: int) -> None:
        state = {
            "kl_coefficient": self.step.leash.coefficient,
            "watch": self.watch.state(),
            "history": self.history,
            "best": self.best,
            "evaluation": self.evaluate and self.evaluate.start,
        }
        checkpoint.save(
            self.step.accelerator,
            self.directory / "checkpoints",
            step,
            state,
            self.schedule.keep_checkpoints,
        )

    def _resume(self) -> int:
        newest = checkpoint.newest(self.directory / "checkpoints")
        if newest is None:  # stopped before the first one: everything is still to do
            return 0
        state = checkpoint.load(self.step.accelerator, newest)
        self.step.leash.coefficient = state["kl_coefficient"]
        self.watch.restore(state["watch"])
        self.history, self.best = state["history"], state["best"]
        if self.evaluate is not None:
            self.evaluate.start = state["evaluation"]
        return state["step"]


def prompts_for(prompts: Sequence[Prompt], number: int, size: int, seed: int) -> list[Prompt]:
    """The prompts of step ``number``: consecutive slices of reshuffled passes over all of them.

    A function of the seed and the number alone, so there is no position to save and every process agrees. A prompt
    that a step has again, because a pass ends within it, is marked: it gets responses of its own.
    """
    chosen: list[Prompt] = []
    position = number * size
    while len(chosen) < size:
        epoch, offset = divmod(position + len(chosen), len(prompts))
        order = Random(f"{seed} {epoch}").sample(range(len(prompts)), len(prompts))
        chosen += [prompts[i] for i in order[offset : offset + size - len(chosen)]]
    before: Counter[int] = Counter()
    for position, prompt in enumerate(chosen):
        if before[prompt.index]:
            chosen[position] = replace(prompt, occurrence=before[prompt.index])
        before[prompt.index] += 1
    return chosen


def step_seed(seed: int, number: int) -> int:
    return int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(seed * 1_000_003 + number)))
