"""Recorder of a run: writes to its directory and its trackers, in the main process only."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from cagsr.config import Config
from cagsr.errors import InputError
from cagsr.evaluation.evaluator import Evaluator
from cagsr.io.atomic_write import write_atomically
from cagsr.runs.model_card import model_card
from cagsr.runs.session import Claim
from cagsr.training.candidate_log import Shown
from cagsr.training.step import Collected
from cagsr.training.tracker_tables import show_candidates

__all__ = ["Recorder", "check_trackers"]

# Number of development prompts whose responses every evaluation keeps, to compare before and after.
KEPT_RESPONSES = 24


class Recorder:
    """A `RunObserver` that writes metrics, candidates, evaluations and model cards, and tells the trackers."""

    def __init__(
        self,
        config: Config,
        claim: Claim,
        shown: Shown,
        evaluator: Evaluator | None,
        form: str = "the whole model",
    ):
        self.form = form  # of the model's files, for its card
        self.config, self.claim, self.run, self.directory = config, claim, claim.run, claim.directory
        self.accelerator, self.shown, self.evaluator = claim.accelerator, shown, evaluator

    def on_start(self, step: int | None) -> None:
        self.claim.rewind(step)
        if self.config.run.trackers:
            # A dashboard goes on where the run does: steps of the broken part are not shown twice.
            run = "" if self.run is None else self.run.id
            self.accelerator.init_trackers(
                "cagsr",
                config={"directory": str(self.directory)},
                init_kwargs={
                    "tensorboard": {"purge_step": (step or 0) + 1},
                    "wandb": {"id": run, "resume": "allow"},
                    "trackio": {"name": run, "resume": "allow"},
                },
            )

    def on_step(self, step: int, row: dict[str, float], collected: Collected) -> None:
        self.accelerator.log(row, step=step)
        if self.run is not None:
            self.run.add_metrics(step, row)
            candidates = self.shown.rows(step, collected)
            self.run.add_candidates(step, candidates)
            if self.shown.in_full(step):
                show_candidates(self.accelerator.trackers, step, candidates)

    def on_evaluation(self, step: int, row: dict[str, float]) -> None:
        numbers = {f"evaluation/{name}": value for name, value in row.items() if name != "step"}
        self.accelerator.log(numbers, step=step)
        if self.run is not None:
            assert self.evaluator is not None, "somebody evaluated"
            ends = {f"evaluation/{name}": value for name, value in self.evaluator.ends.items()}
            self.run.add_metrics(step, numbers | ends)
            self.run.add_evaluation(step, self.evaluator.rows[:KEPT_RESPONSES])

    def on_warning(self, step: int, message: str) -> None:
        if self.run is not None:
            self.run.add_metrics(step, {"warning": message})

    def finish(self, outcome: dict[str, Any], prompts: int) -> None:
        """Write model cards and summary.json, once the last step is done."""
        if self.run is None:
            return
        numbers = {"model": (outcome["last"] or [None])[-1], "best": outcome["best"]}
        for name, evaluation in numbers.items():
            if (self.directory / name).is_dir():
                about = self.config.model_dump(mode="json")
                card = model_card(about, outcome["steps"], evaluation, prompts, self.form)
                write_atomically(self.directory / name / "README.md", card)
        # Written last: it marks the run as complete.
        self.run.write_summary(outcome)


def check_trackers(names: Sequence[str]) -> None:
    """Raise InputError for a dashboard whose package is missing."""
    for name in names:
        if find_spec(name) is None:
            raise InputError(f"run.trackers: {name} is not installed: pip install {name}")
