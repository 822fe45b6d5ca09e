"""Opening of a run directory by a command: a new run, or one to resume, locked and checked to be the same."""

from collections.abc import Callable
from contextlib import ExitStack, suppress
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
from cagsr.io.template_date import moment, pinned_date
from cagsr.io.terminal import say
from cagsr.runs.checkpoint import Checkpoints
from cagsr.runs.directory import CONFIG, RunDirectory
from cagsr.runs.resumable_loop import Continuation

__all__ = ["Claim"]

# What chat templates take for now, in the identity of a run.
DATE = "date in chat templates"


class Claim:
    """Context manager that holds a run directory: locked inside the block; a run that ends too early records why.

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
        self._until_exit = ExitStack()
        self.optional: Callable[[], object] = lambda: None  # forces to the disk what others recorded

    def __enter__(self) -> Self:
        """Open and lock a run to resume, or check that one can be created here.

        Raises InputError for a directory that is used, locked, or holds a run of another identity.
        """
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
        self._pin_date()
        return self

    def _pin_date(self) -> None:
        """Let chat templates write the date of the run's start, whatever day it is when it goes on."""
        recorded = None if self.run is None else self.run.identity().get(DATE)
        self._until_exit.enter_context(pinned_date(World(self.accelerator).from_main(recorded or moment())))
        self.identity[DATE] = moment()

    def _compare(self, identity: dict[str, Any]) -> None:
        if self.run is not None and not self.accept_changes:
            self.run.check_identity(identity)

    def finished(self, steps: int) -> dict[str, Any] | None:
        """The summary of a run that has ended after so many steps; None where steps are left to do."""
        summary = RunDirectory(self.directory, "").summary() if self.resume else None
        done = summary is not None and "stopped" not in summary and summary.get("steps") == steps
        return summary if done else None

    def start(self, known: dict[str, Any]) -> None:
        """Create the run once model and data are loaded; every process then knows its ``id``.

        ``known`` is what could not be known before, and joins the identity.
        """
        self._compare(known)
        self.identity |= known
        if self.accelerator.is_main_process and self.run is None:
            self.run = RunDirectory.create(self.directory, self.config.as_yaml(), self.identity)
        self.id = World(self.accelerator).from_main("" if self.run is None else self.run.id)

    def rewind(self, step: int | None) -> None:
        """Resume after ``step``: nothing can be refused any more, so later rows are dropped and changes recorded."""
        if self.run is not None:
            self.run.settle(self.identity)
            write_atomically(self.directory / CONFIG, self.config.as_yaml())
            self.run.rewind(step)

    def _sync(self) -> None:
        """Force what was recorded, here and on dashboards, to the disk: a checkpoint counts on it."""
        if self.run is not None:
            self.run.sync()
        self.optional()

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
        """The `Continuation` of a supervised loop of the run that was started."""
        return Continuation(
            self.checkpoints(config.train.keep_checkpoints, console),
            Stops(config.run.max_seconds),
            save_every,
            self.resume,
            tell=self.rewind,
        )

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        self._until_exit.close()
        if self.run is None:
            return
        ended = isinstance(error, CagsrError) and not isinstance(error, InputError)
        if ended and self.id is not None:
            # A disk that is full cannot take this either, and its own message is what the user must see.
            with suppress(StorageError):
                # What was there is kept: a comparison that is extended has its table until it has a new one.
                self.run.write_summary({**(self.run.summary() or {}), "stopped": str(error)})
        if isinstance(error, InputError) and not self.resume:
            self.run.discard()
        self.run.close()
