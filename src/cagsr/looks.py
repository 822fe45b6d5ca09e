"""What is left of an attention once it is gone: where each response token looked most, and what was looked at.

Attention is [N T S] and lives for one part of a rollout only; this is small enough to be kept for a whole step.
"""

from dataclasses import dataclass

from torch import Tensor

from cagsr.signals.ingredients import text_mask
from cagsr.types import Rollout

__all__ = ["Look", "look"]

ENTRIES = 5


@dataclass(frozen=True)
class Look:
    """Where the text of the responses of one part of a rollout looked; their ends say nothing and are left out.

    attended         [n S]    the strongest attention that each prompt token got from any response token
    weights, columns [n T J]  the J largest entries of each response token's row, and their prompt columns
    """

    attended: Tensor
    weights: Tensor
    columns: Tensor


def look(rollout: Rollout, attention_nTS: Tensor) -> Look:
    """The summary of an attention; J is at most ENTRIES. Rows sum to at most 1, so that all above 1/6 is there."""
    attention_nTS = attention_nTS * text_mask(rollout).unsqueeze(-1)
    weights, columns = attention_nTS.topk(min(ENTRIES, attention_nTS.shape[-1]), dim=-1)
    return Look(attention_nTS.amax(1), weights, columns)
