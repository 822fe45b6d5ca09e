"""Predictions of a pass over responses, and what is made of them: scores and observations of each response token."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cagsr.models.token_logprobs import Facts
from cagsr.types import Observation, Prompt, Rollout, Wanted

__all__ = [
    "LARGE",
    "Predictions",
    "Scored",
    "in_rows",
    "joined",
    "joined_readings",
    "observed",
    "pieces_read",
    "places",
]

LARGE = 1 << 24
"""From so many numbers [N T S] on, 64 MB in float32, attention is read by piece where that is enough."""


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


def observed(rollout: Rollout, on_prompt: dict[str, Tensor], told: Facts) -> Observation:
    """An `Observation` of what was read of the prompt and the facts ``told``, [N T ...] each, set to 0 at padding."""
    mask, facts = rollout.response_mask, told._asdict()
    prompt_logprobs = facts.pop("prompt_logprobs")
    on_prompt = on_prompt | ({"prompt_logprobs": prompt_logprobs} if prompt_logprobs.shape[-1] else {})
    for value in facts.values():
        value.mul_(mask)
    for name, value in on_prompt.items():
        value.mul_(mask[..., None])
        if name != "looks":
            value.mul_(rollout.prompt_mask.repeat_interleave(rollout.group_size, 0)[:, None])
    return Observation(**facts, on_prompt=on_prompt)


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


def joined_readings(
    parts: Sequence[tuple[Predictions, dict[str, Tensor]]], rollout: Rollout
) -> tuple[Predictions, dict[str, Tensor]]:
    """Predictions of a rollout's parts, and what was read of each prompt, as those of one pass."""
    if len(parts) == 1:
        return parts[0]
    whole, k = {}, rollout.group_size
    for prompt, (_, read) in enumerate(parts):
        for name, value in read.items():
            columns = rollout.prompt_mask[prompt]
            if name == "looks":
                columns = columns.new_ones(value.shape[2])
            if name not in whole:
                whole[name] = value.new_zeros(*rollout.response_ids.shape, len(columns))
            whole[name][prompt * k : (prompt + 1) * k, : value.shape[1], columns] = value
    return joined([predictions for predictions, _ in parts], rollout), whole


def pieces_read(
    prompts: Sequence[Prompt], prompt_mask: Tensor, shape: Sequence[int], wanted: Wanted
) -> Tensor | None:
    """[P J S] the pieces that the attention of responses ``shape`` [N T] is read by; None: by token."""
    if wanted.pieces is None or math.prod(shape) * prompt_mask.shape[1] < LARGE:
        return None
    return wanted.pieces(prompts, prompt_mask)


def in_rows(flat: Tensor, mask: Tensor) -> Tensor:
    """[R ...] of the unmasked tokens -> [N T ...], 0 at padding."""
    rows = flat.new_zeros(*mask.shape, *flat.shape[1:])
    rows[mask] = flat
    return rows
