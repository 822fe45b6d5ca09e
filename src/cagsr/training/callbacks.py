"""transformers' TrainerCallback objects, told of a run's steps, evaluations and end."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from cagsr.training.loop import TrainingLoop
from cagsr.training.step import Collected

__all__ = ["TransformersCallbacks"]


class TransformersCallbacks:
    """A `RunObserver` that tells callbacks of on_train_begin, on_step_end, on_log, on_evaluate and on_train_end.

    They get the state (global_step, max_steps, log_history), the model and the tokenizer. on_log has the row of
    metrics.jsonl, on_train_end comes when model/ is written. ``control.should_training_stop = True`` stops the run at
    the end of the step with a StoppedError, once a checkpoint is saved; what else a control asks for is not done.
    What a callback raises ends the run, after the row of its step is written: it is the program's own code. The last
    checkpoint stands, and the run can go on from there.
    ``args`` has output_dir and max_steps alone: a `transformers.TrainingArguments` would reset Accelerate's state.
    """

    def __init__(self, callbacks: Sequence[TrainerCallback], loop: TrainingLoop):
        self.callbacks, self.loop = callbacks, loop
        steps = loop.schedule.steps
        self.arguments = SimpleNamespace(output_dir=str(loop.directory), max_steps=steps)
        self.state = TrainerState(
            max_steps=steps, is_world_process_zero=loop.step.accelerator.is_main_process
        )
        self.control = TrainerControl()

    def on_start(self, step: int | None) -> None:
        self.state.global_step = step or 0
        self._tell("on_train_begin")

    def on_step(self, step: int, row: dict[str, float], collected: Collected) -> None:
        self.state.global_step = step
        self.state.log_history.append({"step": step, **row})
        self._tell("on_step_end")
        self._tell("on_log", logs=dict(row))

    def on_evaluation(self, step: int, row: dict[str, float]) -> None:
        self._tell("on_evaluate", metrics=dict(row))

    def on_warning(self, step: int, message: str) -> None:
        pass  # transformers has no event for it; the console and metrics.jsonl say it

    def end(self) -> None:
        """The run is finished and its model written."""
        self._tell("on_train_end")

    def _tell(self, event: str, **given: Any) -> None:
        policy = self.loop.step.policy
        about = {"model": policy.model, "processing_class": policy.tokenizer, **given}
        for callback in self.callbacks:
            returned = getattr(callback, event)(self.arguments, self.state, self.control, **about)
            self.control = returned or self.control
        if self.control.should_training_stop:
            self.loop.stops.ask()
