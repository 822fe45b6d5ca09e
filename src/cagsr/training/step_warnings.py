"""Warnings of settings under which a step teaches little: responses that are cut off, candidates with equal rewards."""

from dataclasses import dataclass, field

from rich.console import Console

from cagsr.config.schema import Sampling
from cagsr.io.quiet_libraries import warn
from cagsr.training.step import Collected

__all__ = ["StepWarnings"]

MOST = 0.5  # share of responses cut off from which on the reward judges beginnings
EQUAL = 1e-6  # deviation of the rewards within a group; they are float32


@dataclass
class StepWarnings:
    """A `RunObserver` that tells the console once of most responses cut off, and once of no reward that differs."""

    console: Console
    sampling: Sampling
    told: set[str] = field(default_factory=set)

    def on_start(self, step: int | None) -> None: ...
    def on_evaluation(self, step: int, row: dict[str, float]) -> None: ...
    def on_warning(self, step: int, message: str) -> None: ...

    def on_step(self, step: int, row: dict[str, float], collected: Collected) -> None:
        cut = 1 - row["finished"]
        if cut > MOST:
            self._once(
                "cut",
                f"step {step}: {cut:.0%} of the responses were cut off at sampling.max_new_tokens "
                f"({self.sampling.max_new_tokens}), and are judged without their end; raise it",
            )
        if self.sampling.candidates > 1 and row["reward_spread"] <= EQUAL:
            self._once(
                "equal",
                f"step {step}: all candidates of a prompt have the same reward, from which nothing is learnt; look at "
                "candidates.jsonl, then raise sampling.temperature or choose another reward.preset",
            )

    def _once(self, kind: str, message: str) -> None:
        if kind not in self.told:
            self.told.add(kind)
            warn(self.console, message)
