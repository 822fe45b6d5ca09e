"""Swapped values: does the response say the prompt's value, and not another one of the same kind?"""

__all__ = ["swapped"]

from dataclasses import replace

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from cagsr.errors import InputError
from cagsr.types import Evidence


def swapped(evidence: Evidence, *, asked: PositiveInt = 1, most: PositiveFloat = 8.0) -> Tensor:
    """[N] mean over pieces of ``log p(y | x) - log p(y | x with another value in the piece)``, within ``most`` nats.

    The other value is one that the data set has for the same field, or another number or name, or the piece without
    its negation (`rewards.contrasts`). Of each prompt's pieces ``asked`` are asked for, those whose turn it is by the
    sampled tokens: a pass of the observer for each.

    Range [-most, most]; higher is better: the response fits the prompt's value. About 0 where it speaks of neither;
    0 for a prompt whose pieces have no value.

    Raises InputError where there is no observer to ask, or the data set has no values to swap
    (``evidence.contrasts`` is None).

    Source: experiments of the project (docs/lab-notes.md): it tells right values from wrong ones ("not
    family-friendly" from "family-friendly") better than attention does, and at less than knockout's price.
    """
    if evidence.observer is None:
        raise InputError("swapped asks the observer again, and this evidence has none; give Evidence one")
    if evidence.contrasts is None:
        raise InputError(
            "swapped: there is nothing to exchange. Set reward.salience.kind: pieces; if it is, no prompt has a value "
            "(of a field, a number, a name, a negation) that another prompt has another of: leave the signal out"
        )
    rollout, k = evidence.rollout, evidence.rollout.group_size
    found = torch.zeros(len(rollout.responses), device=rollout.response_ids.device)
    for place, prompt in enumerate(rollout.prompts):
        contrasts = evidence.contrasts(prompt)
        rows = slice(place * k, (place + 1) * k)
        pieces = sorted(contrasts)
        # Other pieces at every step: the tokens that were drawn are as good as dice, and the same for the same rollout.
        turn = int((rollout.response_ids[rows] * rollout.response_mask[rows]).sum())
        chosen = [pieces[(turn + number) % len(pieces)] for number in range(min(asked, len(pieces)))]
        before = evidence.observation.logprobs[rows].sum(-1)
        for piece in chosen:
            ids = torch.tensor([contrasts[piece]], dtype=torch.long, device=rollout.prompt_ids.device)
            other = replace(rollout.chosen([place]), prompt_ids=ids, prompt_mask=torch.ones_like(ids).bool())
            after = evidence.observer.logprobs(other).sum(-1)
            found[rows] += (before - after).clamp(-most, most) / len(chosen)
    return found
