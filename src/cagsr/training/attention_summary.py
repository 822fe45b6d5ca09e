"""What is left of an attention once it is gone: where each response token looked most, and what was looked at.

And of a knockout, where a signal has made one. Attention is [N T S] and lives for one part of a rollout only; this is
small enough to be kept for a whole step.
"""

from dataclasses import dataclass

from torch import Tensor

from cagsr.rewards.segments import Explained
from cagsr.rewards.signals.ingredients import text_mask
from cagsr.types import Rollout

__all__ = ["Look", "look"]

ENTRIES = 5


@dataclass(frozen=True)
class Look:
    """Where the text of the responses of one part of a rollout looked; their ends say nothing and are left out.

    attended         [n S]    the strongest attention that each prompt token got from any response token
    weights, columns [n T J]  the J largest entries of each response token's row, and their prompt columns
    pieces, nats              as of `cagsr.rewards.segments.Explained`; None where no signal asked
    """

    attended: Tensor
    weights: Tensor
    columns: Tensor
    pieces: Tensor | None = None
    nats: Tensor | None = None


def look(rollout: Rollout, attention_nTS: Tensor, explained: Explained | None = None) -> Look:
    """The summary of an attention, and what was ``explained``. J is at most ENTRIES: rows sum to at most 1, so that all
    above 1/6 is there.
    """
    attention_nTS = attention_nTS * text_mask(rollout).unsqueeze(-1)
    weights, columns = attention_nTS.topk(min(ENTRIES, attention_nTS.shape[-1]), dim=-1)
    known = () if explained is None else (explained.pieces, explained.nats)
    return Look(attention_nTS.amax(1), weights, columns, *known)
