"""Training loop around `Step`: evaluation, checkpoints, observers, the collapse watch."""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from cagsr.config.schema import Train
from cagsr.distributed.fsdp import gathered, whole_weights
from cagsr.errors import InputError, NumericsError, StoppedError
from cagsr.io.shutdown import Stops, Unfinished
from cagsr.models.load import save_model
from cagsr.models.lora import is_adapted
from cagsr.runs.checkpoint import Checkpoints, forward
from cagsr.runs.interruption import interruptible
from cagsr.training.collapse_watch import Collapsed, CollapseWatch
from cagsr.training.dynamic_sampling import collect_step, prompts_of_rounds
from cagsr.training.rollout_buffer import load_buffer, save_buffer
from cagsr.training.step import Collected, Progress, Step
from cagsr.training.step_metrics import measure, peak_memory, shuffled_share
from cagsr.types import Prompt

__all__ = ["Evaluation", "RunObserver", "TrainingLoop"]


class Evaluation(Protocol):
    """Protocol of an evaluation of the current policy; its ``reward``, 0 for the base, decides which model was best.

    ``start`` is what it measured first, to be kept when a run is continued.
    """

    start: dict[str, list[float]] | None

    def __call__(self) -> dict[str, float]: ...


@dataclass
class Begun:
    """An unfinished step: its rollout, its metrics so far, and how much of the update is done."""

    collected: Collected
    row: dict[str, float]
    progress: Progress


class RunObserver(Protocol):
    """Protocol of an observer of a run: the run directory, the progress display, the trackers."""

    def on_start(self, step: int | None) -> None:
        """Called when the run goes on after ``step``; None: from its beginning, before the base is evaluated."""

    def on_step(self, step: int, row: dict[str, float], collected: Collected) -> None: ...
    def on_evaluation(self, step: int, row: dict[str, float]) -> None: ...
    def on_warning(self, step: int, message: str) -> None: ...


@dataclass
class TrainingLoop:
    """The steps of a run in order, and between them evaluations, checkpoints, warnings and stops.

    0 for ``evaluate_every`` and ``save_every`` of the schedule means: only at the end. ``identity`` hashes all that the
    run depends on: an unfinished step can only be resumed with the same.
    """

    step: Step
    prompts: Sequence[Prompt]
    schedule: Train
    watch: CollapseWatch
    directory: Path
    checkpoints: Checkpoints
    stops: Stops = field(default_factory=Stops)
    identity: str = ""
    evaluate: Evaluation | None = None
    observers: Sequence[RunObserver] = ()
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] | None = None
    seconds: float = 0.0
    _saved: tuple[int, int] | None = (
        None  # the steps, and optimizer steps of the next, of the newest checkpoint
    )

    def run(self, resume: bool = False) -> dict[str, Any]:
        """Train to the last step; returns ``{"steps", "best", "last", "seconds"}``. The weights: model/ and best/.

        Raises collapse_watch.Collapsed and, when asked to stop, errors.StoppedError, each after saving a checkpoint of
        all optimizer steps: what of a rollout, an evaluation or an optimizer step is unfinished then is thrown away and
        done again by the run that goes on. Raises errors.NumericsError before a bad optimizer step and InputError when
        there is nothing left to train.
        """
        self._since, self._kl_start = time.perf_counter(), self.step.kl_controller.coefficient
        with self.stops:
            done, begun = self._resume() if resume else (None, None)
            for observer in self.observers:
                observer.on_start(done)
            if begun is None and self._evaluate_if_due(done or 0) and done is not None:
                self._save(done)  # anew, with what the evaluation found
            request = self._requested() if done is None else 0
            if request:
                self._save(0)
                raise self.stops.error(request, f"after step 0 of {self.schedule.steps}")
            for number in range(done or 0, self.schedule.steps):
                self._one(number, begun)
                begun = None
            self._save_model("model")
        seconds = round(self._elapsed(), 1)
        return {
            "steps": self.schedule.steps,
            "best": self.best,
            "last": self.history[-1:],
            "seconds": seconds,
        }

    def _one(self, number: int, begun: Begun | None) -> None:
        """Train step ``number + 1``, or the rest of it; then do what is due after it."""
        started = time.perf_counter()
        try:
            with interruptible(self.stops, self.step.world):
                begun = begun or self._begin(number)
                row = begun.row | self.step.update(
                    begun.collected.batches, begun.progress, partial(self._between, number, begun)
                )
        except NumericsError as error:
            where = "" if str(error).startswith("step ") else f"step {number + 1}: "
            raise type(error)(f"{where}{error}") from error
        except Unfinished as stop:
            raise self._thrown_away(stop.request, number, begun) from None
        candidates = self.step.sampling.candidates
        self.step.kl_controller.observe(row["kl_response"], self.schedule.prompts_per_step * candidates)
        row["seconds"] = time.perf_counter() - started
        row["tokens_per_second"] = row["tokens"] / row["seconds"]
        row["memory"] = peak_memory(self.step.world.device)
        for observer in self.observers:
            observer.on_step(number + 1, row, begun.collected)
        collapsed = None
        try:
            messages = self.watch.check(number + 1, row)
        except Collapsed as error:  # after the update, so the step counts
            messages, collapsed = [], error
        for message in messages:
            self._warn(number + 1, message)
        self._after(number + 1, collapsed)

    def _begin(self, number: int) -> Begun:
        schedule, world = self.schedule, self.step.world
        with self._gathered():
            collected, counted = collect_step(self.step, self.prompts, number, schedule)
            row = measure(collected, world) | counted
            if number % self.watch.settings.shuffled_every == 0:
                share = shuffled_share(self.step, collected)
                if share is not None:
                    row["shuffled"] = share
        row["learning_rate"] = float(self.step.scheduler.get_last_lr()[0])
        row["kl_coefficient"] = self.step.kl_controller.coefficient
        return Begun(collected, row, Progress())

    def _between(self, number: int, begun: Begun, progress: Progress) -> None:
        """Called between two optimizer steps of one step: nothing is thrown away there."""
        request = self._requested()
        if request:
            raise self._thrown_away(request, number, begun)

    def _thrown_away(self, request: int, number: int, begun: Begun | None) -> StoppedError:
        """Save what is complete of step ``number + 1``; returns the error that says so."""
        self.step.optimizer.zero_grad()  # of an optimizer step that was not taken
        updates = begun.progress.updates if begun else 0
        self._save(number, begun if updates else None)
        return self.stops.error(request, f"in step {number + 1}, after {updates} optimizer steps of it")

    def _requested(self) -> int:
        return self.step.world.first_request(self.stops.requested())

    def _warn(self, step: int, message: str) -> None:
        for observer in self.observers:
            observer.on_warning(step, message)

    def _after(self, step: int, collapsed: Collapsed | None) -> None:
        """Evaluate and save after a step as far as they are due; then stop, if asked to."""
        schedule = self.schedule
        last = step == schedule.steps
        self._evaluate_if_due(step, collapsed)
        request = 0 if last else self._requested()
        if last or request or collapsed or (schedule.save_every and step % schedule.save_every == 0):
            self._save(step)
        if collapsed:
            raise collapsed
        if request:
            raise self.stops.error(request, f"after step {step} of {schedule.steps}")

    def _evaluate_if_due(self, step: int, collapsed: Collapsed | None = None) -> bool:
        """Evaluate after ``step`` if it is the first, the last or asked for, and not done yet; returns whether it was.

        A stop throws an evaluation away, and it is due again when the run goes on.
        """
        every, last = self.schedule.evaluate_every, step == self.schedule.steps
        due = self.evaluate is not None and (step == 0 or last or (every and step % every == 0))
        if not due or any(row["step"] == step for row in self.history):
            return False
        try:
            self._evaluate(step)
        except Unfinished as stop:
            self._save(step)
            where = f"while it evaluated after step {step} of {self.schedule.steps}"
            raise collapsed or self.stops.error(stop.request, where) from None
        if last and self.best is not None and self.best["reward"] <= 0:
            self._warn(
                step, "no evaluation was better than the base by the reward itself; look before you use best/"
            )
        return True

    def _evaluate(self, step: int) -> None:
        assert self.evaluate is not None, "nothing is due without it"
        with self._gathered(), interruptible(self.stops, self.step.world):
            row = {"step": float(step), **self.evaluate()}
        self.history.append(row)
        self._saved = None  # a checkpoint of this step does not know of it yet
        for observer in self.observers:
            observer.on_evaluation(step, row)
        # Step 0 is the base: it is never the best of a training run, and its reward is 0 by definition.
        if step and (self.best is None or row["reward"] > self.best["reward"]):
            self.best = row
            self._save_model("best")

    def _gathered(self) -> AbstractContextManager[None]:
        return gathered(self.step.networks, self.step.accelerator, self.schedule.gather_for_rollouts)

    def _save_model(self, name: str) -> None:
        policy, main = self.step.policy, self.step.accelerator.is_main_process
        weights = whole_weights(policy.model, main, trained_only=is_adapted(policy.model))
        if main:
            save_model(policy, self.directory / name, weights)
        self.step.accelerator.wait_for_everyone()

    def _save(self, step: int, begun: Begun | None = None) -> None:
        """Save a checkpoint after ``step``, and with ``begun`` of the finished part of the next step.

        Nothing is done where that is there already: what came after it was thrown away.
        """
        place = (step, begun.progress.updates if begun else 0)
        if place == self._saved:
            return
        self._saved = place
        state = {
            "updates": self.step.scheduler.last_epoch,
            "kl_coefficient": self.step.kl_controller.coefficient,
            "kl_start": self._kl_start,
            "watch": self.watch.state(),
            "history": self.history,
            "best": self.best,
            "evaluation": self.evaluate and self.evaluate.start,
            "seconds": self._elapsed(),
        }
        if begun is None:
            self.checkpoints.save(step, state)
            return
        state |= {"row": begun.row, "means": begun.progress.means, "identity": self.identity}
        rank = self.step.world.rank
        self.checkpoints.save(
            step,
            state,
            begun.progress.updates,
            lambda directory: save_buffer(begun.collected, directory, rank),
        )

    def _resume(self) -> tuple[int | None, Begun | None]:
        """Load the newest checkpoint: steps that are done (None: there is none), and the unfinished step, if any."""
        newest = self.checkpoints.newest()
        if newest is None:  # stopped before the first one: everything is still to do
            return None, None
        state = self.checkpoints.load(newest)
        done, updates = state["step"], state["update"]
        self._saved = (done, updates)
        if done > self.schedule.steps:
            raise InputError(
                f"train.steps ({self.schedule.steps}): {self.directory} is at step {done} already. "
                "Set more steps to go on."
            )
        if updates and state["identity"] != self.identity:
            raise InputError(
                f"{self.directory} was stopped inside step {done + 1}, whose rest can only be trained as it was begun. "
                f"Go on without changes first, or remove {newest} to go on from an earlier step."
            )
        forward(self.step.scheduler, state["updates"])
        if state["kl_start"] == self._kl_start:  # a coefficient that was changed in the config wins
            self.step.kl_controller.coefficient = state["kl_coefficient"]
        self.watch.restore(state["watch"])
        self.history, self.best, self.seconds = state["history"], state["best"], state["seconds"]
        if self.evaluate is not None:
            self.evaluate.start = state["evaluation"]
        if not updates:
            return done, None
        rounds = prompts_of_rounds(self.prompts, done, self.schedule)
        prompts = [prompt for of_round in rounds for prompt in of_round]
        collected = load_buffer(newest, self.step.world.rank, prompts, self.step.world.device)
        return done, Begun(collected, state["row"], Progress(updates, state["means"]))

    def _elapsed(self) -> float:
        """Seconds of training, those before an interruption included."""
        return self.seconds + time.perf_counter() - self._since
