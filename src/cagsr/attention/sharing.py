"""Sharing and Tried: how far responses may share the computation of their prompt, as `models.proof` found."""

import inspect
from dataclasses import dataclass
from typing import Any

__all__ = ["Sharing", "Tried", "can_keep"]


@dataclass(frozen=True)
class Sharing:
    """How a policy's passes are made.

    reason: why responses cannot share their prompt; None where they can.

    longest: a causal model's prompt and response may take so many tokens together; None: any number. Beyond it the
    model looks back through a window in a way that was not seen to agree.

    padded: whether prompts of unequal length may be padded to one batch where responses do not share them. If not,
    each prompt goes through the model alone with its responses, and the model counts the positions.
    """

    reason: str | None = None
    longest: int | None = None
    padded: bool = True

    @property
    def possible(self) -> bool:
        return self.reason is None

    def allows(self, tokens: int) -> bool:
        """Whether a prompt and response that take so many tokens together can share."""
        return self.possible and tokens <= (self.longest or tokens)

    def __str__(self) -> str:
        alone = "" if self.padded else ", one prompt at a time"
        if self.reason is not None:
            return f"each response computes its prompt again{alone} ({self.reason})"
        limit = "" if self.longest is None else f", up to {self.longest} tokens; beyond each again{alone}"
        return f"a prompt is computed once for all its responses{limit}"


@dataclass(frozen=True)
class Tried:
    """A comparison of a way of computing with the plain model.

    way      "shared", "padded" or "prompt by prompt"; "training mode"
    tokens   of the longest prompt and response
    nats     largest absolute difference of log-probabilities (of attention, if larger); inf: it could not be made
    problem  why the way is not used; None where it agrees
    """

    way: str
    tokens: int
    nats: float
    problem: str | None = None

    def __str__(self) -> str:
        said = f"agrees within {self.nats:.0e} nats" if self.problem is None else f"not used: {self.problem}"
        return f"{self.way}, {self.tokens} tokens: {said}"


def can_keep(model: Any) -> bool:
    """Whether the model takes ``logits_to_keep``, and so computes only the logits that are asked for."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters
