"""A place on the disk for a run: a new one, or that of a run to go on with, locked, and the same as it was."""

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Self

from accelerate import Accelerator
from rich.console import Console

from cagsr.config import Config
from cagsr.distributed.process_group import World
from cagsr.errors import CagsrError, InputError, StorageError
from cagsr.io.atomic_write import write_atomically
from cagsr.io.quiet_libraries import warn
from cagsr.io.shutdown import Stops
from cagsr.io.terminal import say
from cagsr.runs.checkpoint import Checkpoints
from cagsr.runs.directory import CONFIG, RunDirectory
from cagsr.runs.resumable_loop import Continuation

__all__ = ["Claim"]


class Claim:
    """``with Claim(...)``: locked while the block runs, and a run that ends before its last step says why.

    Before a model is loaded, entering it finds whatever is wrong with the place or the identity. A new run is
    created by `start` only, so that bad data leaves nothing behind. ``run`` is None in all but the main process.
    To ``resume`` where nothing is yet is to start: one command serves a first start and every later one. The console
    is told, as the directory may be misspelt, and ``resume`` is then False.
    """

    def __init__(
        self,
        directory: str | Path,
        config: Config,
        identity: dict[str, Any],
        accelerator: Accelerator,
        *,
        resume: bool = False,
        accept_changes: bool = False,
        console: Console | None = None,
    ):
        self.directory, self.config, self.identity = Path(directory), config, identity
        self.accelerator, self.resume, self.accept_changes = accelerator, resume, accept_changes
        self.console = console
        self.run: RunDirectory | None = None
        self.id: str | None = None

    def __enter__(self) -> Self:
        """Raises InputError for a place that is used, locked, or holds a run that was something else."""
        if self.resume:
            self.resume = World(self.accelerator).by_main(partial(RunDirectory.is_begun, self.directory))
            if not self.resume and self.console is not None:
                say(self.console, f"{self.directory} holds no run yet: --resume starts one.")
        if self.accelerator.is_main_process and self.resume:
            self.run = RunDirectory.resume(self.directory)
            try:
                self._compare(self.identity)
            except CagsrError:
                self.run.close()
                raise
        elif self.accelerator.is_main_process:
            RunDirectory.refuse_used(self.directory)
        return self

    def _compare(self, identity: dict[str, Any]) -> None:
        if self.run is not None and not self.accept_changes:
            self.run.check_identity(identity)

    def finished(self, steps: int) -> dict[str, Any] | None:
        """The summary of a run that has ended after so many steps; None where there is something to do."""
        summary = RunDirectory(self.directory, "").summary() if self.resume else None
        done = summary is not None and "stopped" not in summary and summary.get("steps") == steps
        return summary if done else None

    def start(self, known: dict[str, Any]) -> None:
        """With model and data at hand: from here on there is a run, with an ``id`` that every process knows.

        ``known`` is what could not be known before, and joins the identity.
        """
        self._compare(known)
        self.identity |= known
        if self.accelerator.is_main_process and self.run is None:
            self.run = RunDirectory.create(self.directory, self.config.as_yaml(), self.identity)
        self.id = World(self.accelerator).from_main("" if self.run is None else self.run.id)

    def rewind(self, step: int | None) -> None:
        """The run goes on after ``step``: nothing can be refused any more, so what is new is written down."""
        if self.run is not None:
            self.run.settle(self.identity)
            write_atomically(self.directory / CONFIG, self.config.as_yaml())
            self.run.rewind(step)

    def _sync(self) -> None:
        """What was recorded, here and on dashboards, is as safe as the checkpoint that counts on it."""
        if self.run is not None:
            self.run.sync()
        for tracker in self.accelerator.trackers:
            flush = getattr(getattr(tracker, "writer", None), "flush", None)
            if flush is not None:
                flush()

    def checkpoints(self, keep: int, console: Console) -> Checkpoints:
        """The checkpoints of the run that was started."""
        assert self.id is not None, "start() comes before checkpoints"
        return Checkpoints(
            self.accelerator,
            self.directory / "checkpoints",
            self.id,
            keep,
            say=partial(warn, console),
            before=self._sync,
        )

    def continuation(self, config: Config, save_every: int, console: Console) -> Continuation:
        """How a supervised loop of the run that was started is left and taken up again."""
        return Continuation(
            self.checkpoints(config.train.keep_checkpoints, console),
            Stops(config.run.max_seconds),
            save_every,
            self.resume,
            tell=self.rewind,
        )

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if self.run is None:
            return
        ended = isinstance(error, CagsrError) and not isinstance(error, InputError)
        if ended and self.id is not None:
            # A disk that is full cannot take this either, and its own message is what the user must see.
            with suppress(StorageError):
                self.run.write_summary({"stopped": str(error)})
        if isinstance(error, InputError) and not self.resume:
            self.run.discard()
        self.run.close()
