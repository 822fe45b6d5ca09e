"""ByPiece: attention reduced from a prompt's tokens to its pieces while it is read, a band of columns at a time.

Signals of long prompts read [N T J] where [N T S] would be as large as all else; only the band of one prompt's
responses exists by token, for the heads of one module.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cagsr.attention.call import AttentionCall
from cagsr.attention.dispatch import add_attention
from cagsr.attention.naive import piece_weights

__all__ = ["ByPiece"]

BAND = 1024
"""Columns that are read at a time: with as many response tokens, 4 MB in float32."""


class Band(NamedTuple):
    """Columns of a prompt, the pieces of which a token is among them, and the weights [j c] of a mean over each."""

    columns: slice
    pieces: slice
    weights: Tensor


class ByPiece:
    """Looks [N T J] at pieces [P J S], summed over heads and modules: the mean of the attention to a piece's tokens.

    With ``by_token`` the attention [N T S] is added up too.
    """

    def __init__(self, pieces_PJS: Tensor, by_token: bool):
        self.pieces, self.by_token = pieces_PJS, by_token
        self.found: dict[str, Tensor] = {}  # by the names of `types.Observation`
        self._bands: list[list[Band]] = []

    def add(self, call: AttentionCall, lse: Tensor, shares: Sequence[float]) -> None:
        """Add a module's attention weights, as `Reading.add` is given them, each head by its share.

        A row of queries is a prompt's responses one after another, or one of them.
        """
        batch, _, length, _ = call.query.shape
        room = torch.empty(1, length, BAND, dtype=torch.float32, device=call.query.device)
        if not self.found:
            shape = (batch * call.responses, length // call.responses)
            self.found["looks"] = room.new_zeros(*shape, self.pieces.shape[1])
            if self.by_token:
                self.found["attention"] = room.new_zeros(*shape, self.pieces.shape[2])
            self._bands = [_bands(pieces_JS, self.by_token) for pieces_JS in self.pieces]
        sums = {name: value.view(batch, length, -1) for name, value in self.found.items()}
        bias = None if call.mask is None else call.mask.expand(batch, -1, length, -1)
        for row in range(batch):
            one = slice(row, row + 1)
            for columns, pieces, weights in self._bands[row * len(self._bands) // batch]:
                part = room[..., : columns.stop - columns.start].zero_()
                over = None if bias is None else bias[one, ..., columns]
                given = (call.query[one], call.key[one, :, columns], lse[one], over, call.scaling)
                add_attention(part, *given, shares)
                sums["looks"][row, :, pieces] += part[0] @ weights.T
                if "attention" in sums:
                    sums["attention"][row, :, columns] += part[0]


def _bands(pieces_JS: Tensor, every: bool) -> list[Band]:
    """The bands of a prompt that have a token of a piece, or ``every`` one."""
    weights_JS, found = piece_weights(pieces_JS), []
    for start in range(0, pieces_JS.shape[1], BAND):
        columns = slice(start, min(start + BAND, pieces_JS.shape[1]))
        there = pieces_JS[:, columns].any(-1).nonzero().flatten().tolist()
        pieces = slice(there[0], there[-1] + 1) if there else slice(0)
        if there or every:
            # A copy: a view would keep the weights of all columns.
            found.append(Band(columns, pieces, weights_JS[pieces, columns].clone()))
    return found
