"""Heads worth reading: which attention heads tell what a response took up of its prompt, found without labels.

A head that looks at a piece of the prompt where the response says it is told from one that looks elsewhere by the
knockout of the piece (`rewards.segments.knockout`): for a few prompts, the model's own responses to each are ordered by
what they lose without a piece, and by how strongly each head looked at it. Heads that order them alike are read.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from cagsr.attention.naive import naive_looks, piece_weights
from cagsr.rewards.heads_found import FOLLOWS
from cagsr.rewards.segments import knockout, segments
from cagsr.types import Evidence, Observer, Rollout

__all__ = ["FOLLOWS", "HeadObserver", "agreement", "best_heads", "follows", "looks", "undecided"]

KEPT = 24
"""How many heads are read. Fewer say less of a piece, more mix in heads that look elsewhere."""
SAID, NEAR = 3.0, 2.0
"""Nats that a piece said costs a response at least, as in the preset `knockout`, and how near to it nothing is sure."""
TOLD = 1.0
"""Nats by which knockouts of a piece must differ among a prompt's responses: below, their order is noise."""


class HeadObserver(Observer, Protocol):
    """Protocol of an observer that also tells what each head looked at; see `models.policy.Policy.observe_heads`."""

    def observe_heads(
        self, rollout: Rollout, reduce: Callable[[Tensor], Tensor]
    ) -> dict[int, list[Tensor]]: ...


def looks(observer: HeadObserver, evidence: Evidence) -> dict[int, Tensor]:
    """How strongly each head looked at each piece, by layer: [H N J], max over t of the mean over its tokens."""
    weights_NJS = piece_weights(evidence.per_row(segments(evidence)))

    def reduce(attention_NTS: Tensor) -> Tensor:
        return naive_looks(attention_NTS, weights_NJS).amax(1)

    return {
        layer: torch.stack(heads) for layer, heads in observer.observe_heads(evidence.rollout, reduce).items()
    }


def agreement(looked: Tensor, evidence: Evidence) -> tuple[Tensor, int]:
    """Sum [H] over pieces of the rank correlation, among a prompt's K responses, of ``looked`` [H N J] and knockout.

    Also how many pieces that is: those whose knockouts differ by at least `TOLD` nats. Spearman's correlation, in
    [-1, 1] for each piece.
    """
    k = evidence.rollout.group_size
    lost_PKJ = knockout(evidence).sum(1).unflatten(0, (-1, k))
    counted_PJ = segments(evidence).any(-1) & (lost_PKJ.amax(1) - lost_PKJ.amin(1) >= TOLD)
    ranks_HPKJ = _ranks(looked.unflatten(1, (-1, k)), dim=2)
    of_lost_PKJ = _ranks(lost_PKJ, dim=1)
    alike_HPJ = (ranks_HPKJ * of_lost_PKJ).sum(2)
    scale_HPJ = ranks_HPKJ.norm(dim=2) * of_lost_PKJ.norm(dim=1)
    correlation_HPJ = alike_HPJ / scale_HPJ.clamp(min=1e-12)
    return (correlation_HPJ * counted_PJ).sum((1, 2)), int(counted_PJ.sum())


def follows(looked: Sequence[Tensor], lost: Sequence[Tensor]) -> float:
    """How well looks tell knockouts: mean over prompts of their rank correlation, over all responses and pieces.

    Each [N J], of one prompt: the mean look of the chosen heads, and what responses lose without a piece. In [-1, 1],
    0 where nothing can be told. A criterion without labels: both say what a response took up, so where they agree the
    cheaper one serves.
    """
    found = []
    for look, loss in zip(looked, lost, strict=True):
        of_look, of_loss = (_ranks(values.flatten(), dim=0) for values in (look, loss))
        scale = of_look.norm() * of_loss.norm()
        if scale > 0:  # a prompt of which all is alike tells nothing
            found.append((of_look @ of_loss / scale).item())
    return sum(found) / max(len(found), 1)


def undecided(lost: Sequence[Tensor]) -> float:
    """Share in [0, 1] of knockouts (each [N J], of one prompt) that lie within `NEAR` nats of `SAID`.

    Where it is low, hiding a piece tells whether a response took it up; a base whose responses make up for a hidden
    piece by what the others imply leaves much between. A criterion without labels, beside `follows`.
    """
    every = torch.cat([losses.flatten() for losses in lost])
    return ((every - SAID).abs() < NEAR).float().mean().item()


def best_heads(sums: Mapping[int, Sequence[float]], kept: int = KEPT) -> dict[int, list[float]]:
    """Weights of heads by layer, from their summed agreements: 1 for the ``kept`` highest above 0, 0 for the others.

    Raises ValueError where no head agrees with the knockouts at all.
    """
    ranked = sorted(
        ((value, layer, head) for layer, row in sums.items() for head, value in enumerate(row)), reverse=True
    )
    chosen = {(layer, head) for value, layer, head in ranked[:kept] if value > 0}
    if not chosen:
        raise ValueError("no head looks at what the responses lose without a piece of their prompt")
    found = {
        layer: [float((layer, head) in chosen) for head in range(len(row))] for layer, row in sums.items()
    }
    return {layer: row for layer, row in found.items() if any(row)}


def _ranks(values: Tensor, dim: int) -> Tensor:
    """Ranks along ``dim``, centred; equal values share the mean of theirs."""
    values = values.movedim(dim, -1)
    below = (values[..., None] > values[..., None, :]).float().sum(-1)
    equal = (values[..., None] == values[..., None, :]).float().sum(-1)
    ranks = below + (equal - 1) / 2
    return (ranks - (values.shape[-1] - 1) / 2).movedim(-1, dim)
