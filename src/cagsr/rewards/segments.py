"""Segments of a prompt, and knockout: what each segment explains of every response token.

Both are computed once per evidence and kept in ``evidence.explanations``.
"""

__all__ = ["knockout", "runs", "segments", "without"]

import re
from dataclasses import replace

import torch
from torch import Tensor

from cagsr.errors import InputError
from cagsr.types import Evidence, Prompt, Rollout

# What may stand between the words of one segment: "family friendly : no".
JOINING = re.compile(r"[\s:=]*")
# And where it has a colon already: "name : The Vaults", "price range : more than 30", "rating : 3 out of 5".
JOINING_VALUE = re.compile(r"[\s:=]*(?:[^\s;,.!?|]+\s*){0,2}")


def segments(evidence: Evidence) -> Tensor:
    """[P J S] bool: which prompt tokens make up each of a prompt's J segments; all False beyond its last.

    Those of ``evidence.pieces``, where it has them. Otherwise a segment is a run of salient tokens. A colon or an
    equals sign does not end one, so a field and its value are one segment; a comma, a semicolon, a full stop does. So
    does a stop word, except that up to two may stand in a value.
    """
    known = evidence.explanations
    if known.segments is None:
        known.segments = _segments(evidence) if evidence.pieces is None else evidence.pieces
    return known.segments


def _segments(evidence: Evidence) -> Tensor:
    found = [
        runs(prompt, (row[mask] > 0).tolist())
        for prompt, row, mask in zip(
            evidence.rollout.prompts, evidence.salience, evidence.rollout.prompt_mask, strict=True
        )
    ]
    most = max(max(map(len, found)), 1)
    pieces_PJS = torch.zeros(len(found), most, evidence.salience.shape[1], dtype=torch.bool)
    for row, (pieces, mask) in enumerate(zip(found, evidence.rollout.prompt_mask.cpu(), strict=True)):
        columns = mask.nonzero().squeeze(-1)
        for piece, run in enumerate(pieces):
            pieces_PJS[row, piece, columns[run]] = True
    return pieces_PJS.to(evidence.salience.device)


def runs(prompt: Prompt, salient: list[bool]) -> list[list[int]]:
    """The tokens of each of a prompt's segments, as of `segments`; ``salient`` says which of its tokens are."""
    found: list[list[int]] = []
    for token in (token for token, is_salient in enumerate(salient) if is_salient):
        if found and _belongs(prompt, found[-1], token):
            found[-1].append(token)
        else:
            found.append([token])
    return found


def _belongs(prompt: Prompt, run: list[int], token: int) -> bool:
    begins, ends, starts = prompt.offsets[run[0]][0], prompt.offsets[run[-1]][1], prompt.offsets[token][0]
    has_field = re.search("[:=]", prompt.text[begins:starts])
    return bool((JOINING_VALUE if has_field else JOINING).fullmatch(prompt.text[ends:starts]))


def knockout(evidence: Evidence) -> Tensor:
    """[N T J] ``log p(y_t | x) - log p(y_t | x without segment j)`` in nats; 0 at padding and for no segment.

    Positive where the segment explains the token. A segment is taken away as `without` does it. Costs the observer as
    many passes as prompts have segments on the average.

    Raises InputError where nobody can be asked (``evidence.observer`` is None).

    Source: knockout of the project's experiments; the most exact detector of what was said.
    """
    known = evidence.explanations
    if known.knockout is None:
        known.knockout = _knockout(evidence)
    return known.knockout


def _knockout(evidence: Evidence) -> Tensor:
    if evidence.observer is None:
        raise InputError("a knockout asks the observer again, and this evidence has none; give Evidence one")
    rollout, pieces_PJS = evidence.rollout, segments(evidence)
    shape = (len(rollout.prompts), rollout.group_size, *rollout.response_mask.shape[1:], pieces_PJS.shape[1])
    found = torch.zeros(shape, device=pieces_PJS.device)
    groups, numbers = pieces_PJS.any(-1).nonzero(as_tuple=True)
    # As many prompts at a time as the evidence has: what fitted once fits again.
    for start in range(0, len(groups), len(rollout.prompts)):
        some, piece = (each[start : start + len(rollout.prompts)] for each in (groups, numbers))
        kept = rollout.prompt_mask[some].any(0)  # the columns of what is chosen
        asked = without(rollout.chosen(some.tolist()), pieces_PJS[some, piece][:, kept])
        logprobs = evidence.observer.logprobs(asked).unflatten(0, (len(some), -1))
        found[some, :, : logprobs.shape[-1], piece] = logprobs
    present = pieces_PJS.any(-1)[:, None, None] & rollout.response_mask.unflatten(0, shape[:2])[..., None]
    before = evidence.observation.logprobs.unflatten(0, shape[:2])[..., None]
    return ((before - found) * present).flatten(0, 1)


def without(rollout: Rollout, taken: Tensor) -> Rollout:
    """The rollout with the tokens ``taken`` [P S] removed from its prompts; the responses stay.

    A token is taken by its mask. Only where a prompt's last token is taken, the tokens that are left move to the
    prompt's end, because a causal model's first response token is predicted from there. A prompt of which nothing
    would be left keeps its last token, because a causal model cannot begin from nothing.
    """
    mask_PS = rollout.prompt_mask
    columns = torch.arange(mask_PS.shape[1], device=mask_PS.device)
    is_last_PS = columns == columns.where(mask_PS, -1).amax(-1, keepdim=True)
    kept_PS = mask_PS & ~taken
    kept_PS |= is_last_PS & ~kept_PS.any(-1, keepdim=True)
    moves_P1 = ~(kept_PS & is_last_PS).any(-1, keepdim=True)
    # A stable sort puts what is left behind what is taken; columns beyond the prompt's last stay where they are.
    beyond_PS = columns > is_last_PS.long().argmax(-1, keepdim=True)
    order_PS = (kept_PS.long() + 2 * beyond_PS).argsort(dim=-1, stable=True)
    order_PS = order_PS.where(moves_P1, columns)
    return replace(
        rollout, prompt_ids=rollout.prompt_ids.gather(-1, order_PS), prompt_mask=kept_PS.gather(-1, order_PS)
    )
