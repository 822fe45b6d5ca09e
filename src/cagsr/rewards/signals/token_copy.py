"""Token overlap: salience of the prompt's tokens that occur in the response, by token id."""

__all__ = ["token_copy"]

from torch import Tensor

from cagsr.rewards.signals.ingredients import text_mask
from cagsr.types import Evidence


def token_copy(evidence: Evidence) -> Tensor:
    """[N] ``sum_j w_j [x_j occurs in y]``: share, by salience, of the salient prompt tokens in the response.

    Range [0, 1]; higher is better; 0 for an empty response. Blind to paraphrase, and to the same word cut
    into other tokens.
    """
    rollout = evidence.rollout
    prompt_ids = evidence.per_row(rollout.prompt_ids).unsqueeze(1)
    same = (rollout.response_ids.unsqueeze(-1) == prompt_ids) & text_mask(rollout).unsqueeze(-1)
    return (evidence.per_row(evidence.salience) * same.any(1)).sum(-1)
