"""Reconstruction: how well the observer tells the prompt from the response, without attention."""

__all__ = ["reconstruction"]

import torch
from torch import Tensor

from cagsr.errors import InputError
from cagsr.rewards.signals.ingredients import text_mask
from cagsr.types import Evidence, Observer, Prompt, Rollout


def reconstruction(evidence: Evidence) -> Tensor:
    """[N] ``(1 / J) sum_j log p(x_j | y, x_1 .. x_j-1)`` over the J tokens of the last user turn x, in nats.

    Roles are turned round: the response y stands where the user's turn stood, in its template and behind the turns
    before it, and the user's turn is scored as the answer. Of a plain text the response is all that is read. One pass
    of the observer for each response.

    Range (-inf, 0]; higher is better; 0 for a prompt without a user's token, and what the template alone tells for an
    empty response, or its own end where there is no template. It asks for nothing beyond the prompt's own words: a copy
    of the prompt is the best response.

    Raises InputError where there is no observer to ask (``evidence.observer`` is None).

    Source: cycle consistency, the reconstruction of He et al., Dual Learning, arXiv 1611.00179.
    Differs: by the frozen observer itself, not by a model trained for the way back; a mean over tokens, so that prompts
    of all lengths have one scale; no end of the turn is scored.
    """
    if evidence.observer is None:
        raise InputError(
            "reconstruction asks the observer again, and this evidence has none; give Evidence one"
        )
    rollout, written = evidence.rollout, text_mask(evidence.rollout)
    values = []
    for row in range(len(rollout.responses)):
        place = row // rollout.group_size
        ids = rollout.prompt_ids[place][rollout.prompt_mask[place]]
        response = rollout.response_ids[row][written[row]]
        end = rollout.response_ids[row, :1]  # all that an empty response has
        values.append(_told(evidence.observer, rollout.prompts[place], ids, response, end))
    return evidence.salience.new_tensor(values)


def _told(observer: Observer, prompt: Prompt, ids: Tensor, response: Tensor, start: Tensor) -> float:
    """The mean log-probability of a prompt's last user turn after a response in its place.

    A model cannot begin from nothing: where no token would stand before the turn, it begins from ``start``.
    """
    first, last = _last_user_turn(prompt)
    if first == last:
        return 0.0
    context = torch.cat([ids[:first], response, ids[last:]])
    if not len(context):
        context = start
    target = ids[first:last].unsqueeze(0)
    turned = Rollout(
        prompts=[prompt],
        prompt_ids=context.unsqueeze(0),
        prompt_mask=torch.ones_like(context, dtype=torch.bool).unsqueeze(0),
        response_ids=target,
        response_mask=torch.ones_like(target, dtype=torch.bool),
        finished=torch.zeros(1, dtype=torch.bool, device=target.device),
        responses=[""],
    )
    return float(observer.logprobs(turned).mean())


def _last_user_turn(prompt: Prompt) -> tuple[int, int]:
    """The first token of the last user turn, and the one behind its last; the same where it has none."""
    spans = prompt.written(("last-user",))
    tokens = [
        token
        for token, (start, end) in enumerate(prompt.offsets)
        if start < end and any(start < stop and begin < end for begin, stop in spans)
    ]
    return (tokens[0], tokens[-1] + 1) if tokens else (0, 0)
