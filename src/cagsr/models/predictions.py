"""Predictions of a pass over responses, and what is made of them: scores and observations of each response token."""

from typing import NamedTuple

import torch
from torch import Tensor

from cagsr.models.token_logprobs import Facts
from cagsr.types import Observation, Rollout

__all__ = ["Predictions", "Scored", "in_rows", "joined", "observed", "places"]


class Scored(NamedTuple):
    """Scores of a pass: logprobs, entropy [N T] float32, 0 at padding; values [N T], or None without a critic."""

    logprobs: Tensor
    entropy: Tensor
    values: Tensor | None


class Predictions(NamedTuple):
    """Logits [M V] at M places of a pass, hidden [M D] (or None); place [N T]: where response token t is predicted."""

    logits: Tensor
    place: Tensor
    hidden: Tensor | None


def observed(rollout: Rollout, attention_NTS: Tensor, told: Facts) -> Observation:
    """An `Observation` of attention and the facts ``told`` [N T ...] of every step, set to 0 in place at padding."""
    mask = rollout.response_mask
    columns = rollout.prompt_mask.repeat_interleave(rollout.group_size, 0)[:, None, :] & mask[:, :, None]
    for value in told:
        value.mul_(columns if value.dim() > 2 else mask)
    return Observation(attention=attention_NTS.mul_(columns), **told._asdict())


def places(rows: int, width: int, length: int, first: int, device: torch.device) -> Tensor:
    """[rows width] places in `Predictions` of padded rows of ``length``, whose place ``first`` predicts token 0."""
    return (torch.arange(rows, device=device) * length + first)[:, None] + torch.arange(width, device=device)


def joined(parts: list[Predictions], rollout: Rollout) -> Predictions:
    """Predictions of a rollout's parts, prompt by prompt, as those of one pass."""
    if len(parts) == 1:
        return parts[0]
    place, before, row = torch.zeros_like(rollout.response_ids), 0, 0
    for part in parts:
        rows, width = part.place.shape
        place[row : row + rows, :width] = part.place + before
        before, row = before + len(part.logits), row + rows
    states = [part.hidden for part in parts if part.hidden is not None]
    logits = torch.cat([part.logits for part in parts])
    return Predictions(logits, place, torch.cat(states) if states else None)


def in_rows(flat: Tensor, mask: Tensor) -> Tensor:
    """[R ...] of the unmasked tokens -> [N T ...], 0 at padding."""
    rows = flat.new_zeros(*mask.shape, *flat.shape[1:])
    rows[mask] = flat
    return rows
