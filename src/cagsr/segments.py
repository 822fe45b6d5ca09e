"""What a prompt asks for, piece by piece: its segments, and what each did for every response token."""

__all__ = ["knockout", "segments"]

import re
from dataclasses import replace

import torch
from torch import Tensor

from cagsr.errors import InputError
from cagsr.types import Evidence, Prompt

# What may stand between the words of one segment: "family friendly : no", "price range : more than 30".
JOINING = re.compile(r"[\s:=]*")


def segments(evidence: Evidence) -> Tensor:
    """[P J S] bool: which salient prompt tokens make up each of a prompt's J segments; all False beyond its last.

    A segment is a run of salient tokens. A colon or an equals sign does not end one, so a field and its value are
    one segment; a stop word, a comma, a semicolon, a full stop does.
    """
    found = [
        _runs(prompt, (row[mask] > 0).tolist())
        for prompt, row, mask in zip(
            evidence.rollout.prompts, evidence.salience, evidence.rollout.prompt_mask, strict=True
        )
    ]
    most = max(max(map(len, found)), 1)
    pieces_PJS = torch.zeros(len(found), most, evidence.salience.shape[1], dtype=torch.bool)
    for row, (runs, mask) in enumerate(zip(found, evidence.rollout.prompt_mask.cpu(), strict=True)):
        columns = mask.nonzero().squeeze(-1)
        for piece, run in enumerate(runs):
            pieces_PJS[row, piece, columns[run]] = True
    return pieces_PJS.to(evidence.salience.device)


def _runs(prompt: Prompt, salient: list[bool]) -> list[list[int]]:
    runs: list[list[int]] = []
    for token in (token for token, is_salient in enumerate(salient) if is_salient):
        between = prompt.text[prompt.offsets[runs[-1][-1]][1] : prompt.offsets[token][0]] if runs else ""
        if runs and JOINING.fullmatch(between):
            runs[-1].append(token)
        else:
            runs.append([token])
    return runs


def knockout(evidence: Evidence) -> Tensor:
    """[N T J] ``log p(y_t | x) - log p(y_t | x without segment j)`` in nats; 0 at padding and for no segment.

    Positive where the segment explains the token. A segment is taken away by its mask: for an encoder-decoder it
    stands in the encoder no more, for a causal model it is as if it had never been written. Costs one pass of the
    observer for each segment of the prompt that has most. Kept in ``evidence.derived``.

    Raises InputError where nobody can be asked (``evidence.observer`` is None).
    """
    if "knockout" not in evidence.derived:
        evidence.derived["knockout"] = _knockout(evidence)
    return evidence.derived["knockout"]


def _knockout(evidence: Evidence) -> Tensor:
    if evidence.observer is None:
        raise InputError("a knockout asks the observer again, and this evidence has none")
    rollout = evidence.rollout
    pieces_PJS = segments(evidence)
    columns = []
    for piece_PS in pieces_PJS.unbind(1):
        without = replace(rollout, prompt_mask=rollout.prompt_mask & ~piece_PS)
        difference = evidence.observation.logprobs - evidence.observer.logprobs(without)
        columns.append(difference * evidence.per_row(piece_PS.any(-1))[:, None])
    return torch.stack(columns, -1)
