"""Attention coverage: how much of the prompt's salient tokens the response attends to."""

__all__ = ["coverage"]

from pydantic import PositiveFloat
from torch import Tensor

from cagsr.rewards.signals.ingredients import Saturation, saturate, text_mask
from cagsr.types import Evidence


def coverage(
    evidence: Evidence, *, saturation: Saturation = "max", cap: PositiveFloat = 1.0, gate: bool = False
) -> Tensor:
    """[N] ``sum_j w_j sat_t(g_t A[t, j])``: every salient prompt token counts once, however often it is read.

    ``sat`` is ``max``, ``noisy_or`` (``1 - prod_t (1 - g_t A)``) or ``capped_sum``
    (``min(cap, sum_t g_t A)``, the only one that reads ``cap``). With ``gate``,
    ``g_t = p(y_t) / max_v p(v)``: looking at a token while writing what the observer does not believe earns
    nothing. Without, ``g_t = 1``.

    Range [0, 1], for capped sums [0, cap]; higher is better; 0 for an empty response.

    Source: arXiv 2502.10482, prompt coverage.
    Differs: the paper sums attention mass. A row sums to one, so a single focused clause has the highest
    mass; here each prompt token saturates before the sum over the prompt.
    """
    written = text_mask(evidence.rollout).float()
    if gate:
        written = written * evidence.observation.confidence
    looked = evidence.observation.attention * written.unsqueeze(-1)
    return (evidence.per_row(evidence.salience) * saturate(looked, saturation, cap)).sum(-1)
