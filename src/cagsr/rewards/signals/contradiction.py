"""Penalty for tokens that the prompt makes less likely to the observer."""

__all__ = ["contradiction"]

from pydantic import NonNegativeFloat
from torch import Tensor

from cagsr.errors import InputError
from cagsr.rewards import segments
from cagsr.types import Evidence


def contradiction(evidence: Evidence, *, threshold: NonNegativeFloat = 0.0) -> Tensor:
    """[N] ``-(1 / J) sum_t relu(log p(y_t | nothing) - log p(y_t | x) - threshold)``, in nats.

    ``nothing`` is the prompt without its salient tokens and J its number of segments, at least 1. What the prompt
    makes likelier is free; a word that would do for any prompt but this one is charged. One pass of the observer.

    Range (-inf, 0]; higher is better; 0 for a response without tokens and where a prompt has no salient token.
    Raises InputError where there is no observer to ask (``evidence.observer`` is None).
    """
    if evidence.observer is None:
        raise InputError(
            "a contradiction asks the observer again, and this evidence has none; give Evidence one"
        )
    nothing = evidence.observer.logprobs(segments.without(evidence.rollout, evidence.salience > 0))
    count_P = segments.segments(evidence).any(-1).sum(-1)
    charged = (nothing - evidence.observation.logprobs - threshold).clamp(min=0)
    # Without a salient token the two passes are one, and rounding is no contradiction.
    charged = charged * evidence.per_row(count_P > 0)[:, None]
    return -charged.sum(-1) / evidence.per_row(count_P).clamp(min=1)
