"""Checkpoints of a supervised training loop: it stops after any step and resumes as if it had not stopped."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch.optim.lr_scheduler import LRScheduler

from cagsr.distributed.process_group import World
from cagsr.errors import InputError
from cagsr.io.shutdown import Stops, Unfinished
from cagsr.runs.checkpoint import Checkpoints, forward
from cagsr.runs.interruption import interruptible

__all__ = ["Continuation"]


@dataclass
class Continuation:
    """Saving and resuming of one loop: saves after every ``save_every`` steps (0: never by itself) and when ``stops``
    asks.

    ``tell`` is told the steps that are done, or None, when the loop begins. ``seconds`` of training are those of all
    its parts.
    """

    checkpoints: Checkpoints
    stops: Stops
    save_every: int
    resume: bool
    tell: Callable[[int | None], object]
    seconds: float = 0.0
    _since: float = field(default_factory=time.perf_counter)
    _saved: int | None = None  # the steps of the newest checkpoint

    def restore(self, scheduler: LRScheduler, steps: int) -> int:
        """Load the newest checkpoint; returns the steps that are done, 0 without one.

        Call it when the loop is ready to begin, model and optimizer prepared, the schedule at its start. Raises
        InputError where more than ``steps`` are done.
        """
        self._since = time.perf_counter()
        newest = self.checkpoints.newest() if self.resume else None
        done = None
        if newest is not None:
            state = self.checkpoints.load(newest)
            done, self.seconds = state["step"], state["seconds"]
            if done > steps:
                raise InputError(
                    f"{self.checkpoints.root.parent} is at step {done} already; set more than {steps} steps"
                )
            forward(scheduler, done)
        self._saved = done
        self.tell(done)
        return done or 0

    @contextmanager
    def step(self, number: int, steps: int) -> Iterator[None]:
        """Context manager around step ``number`` of ``steps`` up to its optimizer's: a stop throws it away.

        Raises StoppedError, once all steps before it are saved.
        """
        try:
            with interruptible(self.stops, World(self.checkpoints.accelerator)):
                yield
        except Unfinished as stop:
            if number - 1 != self._saved:
                self._save(number - 1)
            raise self.stops.error(stop.request, f"in step {number} of {steps}") from None

    def after(self, step: int, steps: int) -> None:
        """Save, if it is due, after step ``step`` of ``steps``. Raises StoppedError, once all is saved, when asked to
        stop.
        """
        request = World(self.checkpoints.accelerator).first_request(self.stops.requested())
        # After the last step too: what comes after the loop can fail.
        if request or step == steps or (self.save_every and step % self.save_every == 0):
            self._save(step)
        if request and step < steps:
            raise self.stops.error(request, f"after step {step} of {steps}")

    def _save(self, step: int) -> None:
        self.checkpoints.save(step, {"seconds": self.elapsed()})
        self._saved = step

    def elapsed(self) -> float:
        """Seconds of training, those before an interruption included."""
        return self.seconds + time.perf_counter() - self._since
