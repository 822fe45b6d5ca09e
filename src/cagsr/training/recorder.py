"""Recorder of a run: writes to its directory, then tells its dashboards, in the main process only."""

from typing import Any

from rich.console import Console

from cagsr.config import Config
from cagsr.errors import CagsrError
from cagsr.evaluation.evaluator import Evaluator
from cagsr.io.atomic_write import write_atomically
from cagsr.io.quiet_libraries import warn
from cagsr.runs.model_card import model_card
from cagsr.runs.session import Claim
from cagsr.training.candidate_log import Shown
from cagsr.training.dashboards import Dashboards
from cagsr.training.step import Collected

__all__ = ["Recorder"]

# Number of development prompts whose responses every evaluation keeps, to compare before and after.
KEPT_RESPONSES = 24


class Recorder:
    """A `RunObserver` that writes metrics, candidates, evaluations and model cards, and then tells the dashboards.

    ``config`` is that of the claim with its reward settled. ``form`` is what the model's files are, for its card.
    ``warnings`` are of what is optional and failed: they are said when it fails, kept in metrics.jsonl and
    summary.json, and said again at the end.
    """

    def __init__(
        self,
        config: Config,
        claim: Claim,
        shown: Shown,
        evaluator: Evaluator | None,
        console: Console,
        form: str = "the whole model",
    ):
        self.form = form
        self.config, self.claim, self.run, self.directory = config, claim, claim.run, claim.directory
        self.shown, self.evaluator, self.console = shown, evaluator, console
        self.dashboards = Dashboards(config.run.trackers, claim.accelerator, self._failed)
        claim.optional = self.dashboards.flush
        self.warnings: list[str] = []
        self.step = 0

    def on_start(self, step: int | None) -> None:
        self.claim.rewind(step)
        self.step = step or 0
        self.resumed = step
        self.dashboards.start(self.directory, "" if self.run is None else self.run.id, self.step)

    def on_step(self, step: int, row: dict[str, float], collected: Collected) -> None:
        if self.run is None:
            return
        self.step = step
        self.run.add_metrics(step, row)
        candidates = self.shown.rows(step, collected)
        self.run.add_candidates(step, candidates)
        self.dashboards.log(step, row)
        if self.shown.in_full(step):
            self.dashboards.show(step, candidates)

    def on_evaluation(self, step: int, row: dict[str, float]) -> None:
        if self.run is None:
            return
        assert self.evaluator is not None, "somebody evaluated"
        if step == self.resumed:
            self.run.drop_evaluation(step)  # of a run that was killed before the checkpoint knew of it
        numbers = {f"evaluation/{name}": value for name, value in row.items() if name != "step"}
        ends = {f"evaluation/{name}": value for name, value in self.evaluator.ends.items()}
        self.run.add_metrics(step, numbers | ends)
        self.run.add_evaluation(step, self.evaluator.rows[:KEPT_RESPONSES])
        self.dashboards.log(step, numbers)

    def on_warning(self, step: int, message: str) -> None:
        if self.run is not None:
            self.run.add_metrics(step, {"warning": message})

    def finish(self, outcome: dict[str, Any], prompts: int) -> None:
        """Write model cards and summary.json, once the last step is done, and close the dashboards.

        ``outcome`` gets the warnings, if there are any.
        """
        if self.run is None:
            return
        numbers = {"model": (outcome["last"] or [None])[-1], "best": outcome["best"]}
        for name, evaluation in numbers.items():
            if (self.directory / name).is_dir():
                self._write_card(name, outcome["steps"], evaluation, prompts)
        # It marks the run as complete: written before anybody else is waited for.
        self.run.write_summary(outcome)
        self.dashboards.finish()
        if self.warnings:
            outcome["warnings"] = self.warnings
            self.run.write_summary(outcome)
            warn(self.console, f"the run is complete; what failed beside it: {' '.join(self.warnings)}")

    def _write_card(self, name: str, step: int, evaluation: dict[str, float] | None, prompts: int) -> None:
        try:
            asked = self.claim.config.reward.preset
            card = model_card(
                self.config.model_dump(mode="json"), step, evaluation, prompts, self.form, asked
            )
            write_atomically(self.directory / name / "README.md", card)
        except CagsrError:
            raise
        except Exception as error:
            self._failed(
                f"the card of {name}/ was not written ({type(error).__name__}: {error}); its weights are whole. Write "
                "its README.md yourself."
            )

    def _failed(self, message: str) -> None:
        self.warnings.append(message)
        warn(self.console, message)
        self.on_warning(self.step, message)
