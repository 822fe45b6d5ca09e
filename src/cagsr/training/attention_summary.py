"""Top-k attention summary kept after the tensor is freed: what each response token attended to most.

Attention is [N T S] and lives for one part of a rollout only; its summary is small enough to be kept for a whole step.
So are the sum of a knockout, where a signal has made one, and the looks at the pieces that a salience knows.
"""

from dataclasses import dataclass

from torch import Tensor

from cagsr.rewards.signals.ingredients import strongest_looks, text_mask
from cagsr.types import Evidence

__all__ = ["Look", "look"]

ENTRIES = 5


@dataclass(frozen=True)
class Look:
    """Attention summary of one part of a rollout, its text only: the end-of-sequence tokens are left out.

    attended         [n S]    the strongest attention that each prompt token got from any response token
    weights, columns [n T J]  the J largest entries of each response token's row, and their prompt columns
    pieces           [P J S]  bool, the prompt's segments; None where the salience knows no pieces and no signal asked
                              for a knockout
    nats             [n J]    what each segment explains of a whole response: the knockout's sum; None without one
    looked           [n J]    the strongest mean attention that each piece got from any response token, as the signal
                              ``attended`` reads it; None where the salience knows no pieces
    """

    attended: Tensor
    weights: Tensor
    columns: Tensor
    pieces: Tensor | None = None
    nats: Tensor | None = None
    looked: Tensor | None = None


def look(evidence: Evidence) -> Look:
    """The summary of evidence that signals have been measured on. Nothing is asked for it alone.

    J is at most ENTRIES: rows sum to at most 1, so all entries above 1/6 are among them.
    """
    attention_nTS = evidence.observation.attention * text_mask(evidence.rollout).unsqueeze(-1)
    weights, columns = attention_nTS.topk(min(ENTRIES, attention_nTS.shape[-1]), dim=-1)
    known = evidence.explanations
    return Look(
        attention_nTS.amax(1),
        weights,
        columns,
        evidence.pieces if known.knockout is None else known.segments,
        None if known.knockout is None else known.knockout.sum(1),
        None if evidence.pieces is None else strongest_looks(evidence, evidence.pieces),
    )
