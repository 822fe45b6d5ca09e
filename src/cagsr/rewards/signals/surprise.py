"""Surprise penalty: tokens that are unlikely under the observer."""

__all__ = ["surprise"]

from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.nn.functional import pad

from cagsr.types import Evidence


def surprise(evidence: Evidence, *, threshold: NonNegativeFloat = 2.0, width: PositiveFloat = 2.0) -> Tensor:
    """[N] ``-(1 / segments) sum_t clip((-log p(y_t) - threshold) / width, 0, 1)``, in nats.

    A segment is a contiguous run of salient prompt tokens; runs are separated by a token of zero salience
    (a stop word, a separator), and a prompt has at least one. Dividing by what there is to say rather than
    by what was said means that padding a response with safe words buys nothing.

    Range (-inf, 0]; higher is better; 0 for a response without tokens. The end-of-sequence token is charged
    like any other, so that ending too early has its price.

    Source: SURP of the project's experiments on paraphrase.
    """
    costs = ((-evidence.observation.logprobs - threshold) / width).clamp(0, 1)
    return -costs.sum(-1) / evidence.per_row(_segments(evidence)).clamp(min=1)


def _segments(evidence: Evidence) -> Tensor:
    """[P] runs of salient tokens, counted at their first token."""
    salient = evidence.salience > 0
    previous = pad(salient, (1, 0))[:, :-1]
    return (salient & ~previous).sum(-1)
