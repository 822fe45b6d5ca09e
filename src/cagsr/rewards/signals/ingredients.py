"""Building blocks that several signals share: text mask, masked mean, looks, saturation. Not a signal itself."""

__all__ = ["Saturation", "mean_over", "saturate", "strongest_looks", "text_mask"]

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cagsr.attention.naive import naive_looks, piece_weights
from cagsr.types import Evidence, Rollout

Saturation = Literal["max", "noisy_or", "capped_sum"]


def text_mask(rollout: Rollout) -> Tensor:
    """[N T] bool: the response tokens that are text, which is all but the end-of-sequence token.

    The query that predicts the end attends somewhere too, but no text is written there: signals about attention
    and repetition leave it out, so that an empty response covers exactly nothing. Signals about
    log-probabilities keep it, because ending too early should cost its log-probability.
    """
    columns = torch.arange(rollout.response_mask.shape[1], device=rollout.response_mask.device)
    is_last = columns == (rollout.lengths - 1).unsqueeze(-1)
    return rollout.response_mask & ~(is_last & rollout.finished.unsqueeze(-1))


def mean_over(values: Tensor, mask: Tensor) -> Tensor:
    """[N T], [N T] -> [N]: mean of ``values`` where ``mask`` is True, 0 where it is nowhere True."""
    return values.where(mask, 0).sum(-1) / mask.sum(-1).clamp(min=1)


def strongest_looks(evidence: Evidence, pieces_PJS: Tensor) -> Tensor:
    """[N J] how strongly a response looks at each piece: max over t of the mean over the piece's tokens.

    0 for a piece without tokens and for a response without any.
    """
    looks_NTJ = evidence.observation.looks
    if looks_NTJ is None:
        weights_NJS = piece_weights(evidence.per_row(pieces_PJS))
        # In float32, as they are read by piece, whatever passes are made in.
        with torch.autocast(pieces_PJS.device.type, enabled=False):
            looks_NTJ = naive_looks(evidence.observation.attention, weights_NJS)
    # Of more prompts than these, some may have had more pieces.
    looks_NTJ = looks_NTJ[..., : pieces_PJS.shape[1]] * text_mask(evidence.rollout).unsqueeze(-1)
    # A row of zeros more, for a response without any token.
    return F.pad(looks_NTJ, (0, 0, 0, 1)).amax(1)


def saturate(looked: Tensor, saturation: Saturation, cap: float) -> Tensor:
    """[N T S] -> [N S]: saturating sum of the attention to each prompt token: more of the same adds less.

    ``looked`` is overwritten: it is as large as the attention, and one copy of that is enough. In [0, 1] for
    ``max_t`` and ``1 - prod_t (1 - looked)``; in [0, cap] for ``min(cap, sum_t looked)``.
    """
    if looked.shape[1] == 0:
        return looked.sum(1)
    if saturation == "max":
        return looked.amax(1)
    if saturation == "noisy_or":
        return 1 - looked.neg_().add_(1).clamp_(0, 1).prod(1)
    return looked.sum(1).clamp(max=cap)
