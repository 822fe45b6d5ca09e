"""Collapse watch: metrics that degrade before the reward shows a failure, each with a limit and an action.

Intrinsic rewards rise and then fall (arXiv 2603.08660): the reward keeps growing while the text goes bad. What
the reward cannot see is watched here.
"""

from dataclasses import dataclass, field

from cagsr.config.schema import WatchSettings
from cagsr.errors import StoppedError

__all__ = ["CollapseWatch", "Collapsed"]


class Collapsed(StoppedError):
    """A watched metric passed its limit, and its action is to stop.

    Raised after the step's update: the trainer saves a checkpoint of the weights after that step, to go on from.
    """


WATCHED = ("length", "repetition", "kl", "entropy", "shuffled")
# What each number is compared as, and how the message says it.
RELATIVE = ("length", "entropy")
EMPTY = 0.5  # share of responses without a token from which on every step says so


@dataclass
class CollapseWatch:
    """Limits on the metrics of a step: `check` takes the row of `step_metrics.measure`, and warns or raises Collapsed.

    length, entropy       relative to the first step; length also below 1 / limit, entropy only below limit
    repetition, kl, shuffled   absolute, above limit
    """

    settings: WatchSettings = field(default_factory=WatchSettings)
    start: dict[str, float] = field(default_factory=dict)
    beyond: dict[str, int] = field(default_factory=dict)

    def check(self, step: int, row: dict[str, float]) -> list[str]:
        """The warnings of a step. Raises Collapsed where a limit is passed whose action is to stop."""
        messages, stop = [], None
        if row.get("empty", 0.0) >= EMPTY:
            messages.append(f"step {step}: {row['empty']:.0%} of the responses are empty")
        for name in WATCHED:
            limit = getattr(self.settings, name)
            value = row.get(name)
            if value is None or limit.limit is None:
                continue
            reason = self._reason(name, value, limit.limit)
            self.beyond[name] = self.beyond.get(name, 0) + 1 if reason else 0
            if reason and self.beyond[name] >= limit.patience:
                message = f"step {step}: {reason}, for {self.beyond[name]} checks in a row (watch.{name})"
                messages.append(message)
                if limit.action == "stop":
                    stop = stop or message
        if stop:
            # Only after every limit has counted this step, so that a resumed run counts on from the same numbers.
            raise Collapsed(
                f"{stop}. Stopped. Look at candidates.jsonl; a smaller learning rate, a larger "
                "algorithm.kl_coefficient or another reward preset may hold it."
            )
        return messages

    def _reason(self, name: str, value: float, limit: float) -> str | None:
        if name not in RELATIVE:
            return f"{name} is {value:.3g}, above {limit:g}" if value > limit else None
        share = value / max(self.start.setdefault(name, value), 1e-9)
        if name == "length" and share > limit:
            return f"length is {share:.2g} times that of the first step, above {limit:g}"
        if name == "length" and share < 1 / limit:
            return f"length is {share:.2g} times that of the first step, below 1/{limit:g}"
        if name == "entropy" and share < limit:
            return f"entropy is {share:.2g} times that of the first step, below {limit:g}"
        return None

    def state(self) -> dict[str, dict]:
        """The baselines and counts, for a checkpoint."""
        return {"start": dict(self.start), "beyond": dict(self.beyond)}

    def restore(self, state: dict[str, dict]) -> None:
        """Load what `state` returned."""
        self.start, self.beyond = dict(state["start"]), dict(state["beyond"])
