"""Dashboards of a run (TensorBoard, W&B, trackio): one that fails is named once and told no more; the run goes on."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from cagsr.errors import InputError
from cagsr.io.shutdown import Unfinished, waiting
from cagsr.training.tracker_tables import show_candidates

__all__ = ["Dashboards", "check_trackers"]

OFFLINE = ("offline", "disabled", "dryrun")


class Dashboards:
    """The trackers of a run's main process; ``warn`` is told of one that fails, once, with what to do about it."""

    def __init__(self, names: Sequence[str], accelerator: Accelerator, warn: Callable[[str], object]):
        self.names = names if accelerator.is_main_process else ()
        self.warn = warn
        self.trackers: dict[str, Any] = {}

    def start(self, directory: Path, run: str, step: int) -> None:
        """Open the dashboards of the run with this id, which goes on after ``step``."""
        # A dashboard goes on where the run does: steps of the broken part are not shown twice.
        settings: dict[str, dict[str, Any]] = {
            "tensorboard": {"logging_dir": str(directory), "purge_step": step + 1},
            "wandb": {"id": run, "resume": "allow"},
            "trackio": {"name": run, "resume": "allow"},
        }
        for name in self.names:
            with self._optional(name, "while it was opened"):
                tracker = LOGGER_TYPE_TO_CLASS[name]("cagsr", **settings[name])
                tracker.start()
                tracker.store_init_configuration({"directory": str(directory)})
                self.trackers[name] = tracker

    def log(self, step: int, row: Mapping[str, float]) -> None:
        """Show the numbers of a step."""
        for name, tracker in [*self.trackers.items()]:
            with self._optional(name, f"at step {step}"):
                tracker.log(row, step=step)

    def show(self, step: int, candidates: Sequence[Mapping[str, Any]]) -> None:
        """Show rows of candidates.jsonl as a table."""
        for name, tracker in [*self.trackers.items()]:
            with self._optional(name, f"with the candidates of step {step}"):
                show_candidates([tracker], step, candidates)

    def flush(self) -> None:
        """Force what was shown so far to the disk, of a dashboard that writes there: a checkpoint counts on it."""
        for name, tracker in [*self.trackers.items()]:
            flush = getattr(getattr(tracker, "writer", None), "flush", None)
            if flush is not None:
                with self._optional(name, "while it wrote to the disk"):
                    flush()

    def finish(self) -> None:
        """Close all; nothing is shown afterwards."""
        for name, tracker in [*self.trackers.items()]:
            with self._optional(name, "while it was closed"):
                tracker.finish()
        self.trackers = {}

    @contextmanager
    def _optional(self, name: str, when: str) -> Iterator[None]:
        try:
            with waiting():
                yield
        # A library may give up by sys.exit too. Unfinished: it kept the run waiting when that was asked to stop.
        except (Exception, SystemExit, Unfinished) as error:
            self.trackers.pop(name, None)
            said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            self.warn(
                f"run.trackers: {name} failed {when} ({said}) and is told nothing more; the run goes on, and "
                "metrics.jsonl has every number. Look at its own login, network and disk; --resume opens it again."
            )


def check_trackers(names: Sequence[str]) -> None:
    """Raise InputError for a dashboard whose package or key is missing."""
    for name in names:
        if find_spec(name) is None:
            raise InputError(f"run.trackers: {name} is not installed: pip install {name}")
    if "wandb" in names and os.environ.get("WANDB_MODE") not in OFFLINE:
        _demand_key()


def _demand_key() -> None:
    try:
        wandb = import_module("wandb")
    except Exception as error:  # a package that is broken raises anything
        raise InputError(f"run.trackers: wandb cannot be imported ({error}); install it anew") from error
    # Not every version of the package says what it is logged in with; then it is found out when it is opened.
    api = getattr(wandb, "api", None)
    if api is not None and api.api_key is None and not api.disabled():
        raise InputError(
            "run.trackers: wandb has no API key: run `wandb login` or set WANDB_API_KEY, set WANDB_MODE=offline to "
            "send nothing, or leave wandb out"
        )
