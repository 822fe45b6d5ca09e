"""Mean log-probability of the response under the observer."""

__all__ = ["reference_logprob"]

from torch import Tensor

from cagsr.rewards.signals.ingredients import mean_over
from cagsr.types import Evidence


def reference_logprob(evidence: Evidence) -> Tensor:
    """[N] ``mean_t log p(y_t)``, the end-of-sequence token included.

    Range (-inf, 0]; higher is better; 0 for a response without tokens. The observer is the frozen reference
    unless the run says otherwise. As a reward it only sharpens.
    """
    return mean_over(evidence.observation.logprobs, evidence.rollout.response_mask)
