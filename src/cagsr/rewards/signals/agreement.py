"""Agreement of a response with the other candidates: a majority vote for free text."""

__all__ = ["agreement"]

from torch import Tensor

from cagsr.metrics.common_subsequence import rouge_l
from cagsr.rewards.signals.ingredients import text_mask
from cagsr.types import Evidence


def agreement(evidence: Evidence) -> Tensor:
    """[N] mean ROUGE-L F1, on token ids, of a response with the other candidates of its group.

    Range [0, 1]; higher is nearer to what the group says; 0 for an empty response and for a group of one.

    Source: minimum Bayes risk (arXiv 2211.07634 for a survey) with the utility ROUGE-L; where answers are the same
    or share nothing, it is the majority vote of TTRL, arXiv 2504.16084.
    """
    rollout = evidence.rollout
    written = text_mask(rollout)
    rows = [ids[mask].tolist() for ids, mask in zip(rollout.response_ids, written, strict=True)]
    values = []
    for start in range(0, len(rows), rollout.group_size):
        values += _agreements(rows[start : start + rollout.group_size])
    return evidence.salience.new_tensor(values)


def _agreements(group: list[list[int]]) -> list[float]:
    sums = [0.0] * len(group)
    for one in range(len(group)):
        for other in range(one):
            likeness = rouge_l(group[one], group[other])
            sums[one] += likeness
            sums[other] += likeness
    return [total / max(len(group) - 1, 1) for total in sums]
