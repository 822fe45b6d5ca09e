"""Rows of tokens: of unequal length and packed without padding, and a group's responses folded into one row."""

import torch
from torch import Tensor

__all__ = ["Rows", "counted", "fold", "of_each", "unfold"]


class Rows:
    """B rows of tokens of unequal length: flat [m ...], row after row, or padded on the right [B W ...]."""

    def __init__(self, lengths: Tensor, width: int):
        self.lengths = lengths
        self.mask = torch.arange(width, device=lengths.device) < lengths[:, None]
        self.even = bool(self.mask.all())
        self.at = self.mask.flatten().nonzero().squeeze(-1)

    def pad(self, flat: Tensor) -> Tensor:
        """[m ...] -> [B W ...], 0 at padding."""
        shape = (*self.mask.shape, *flat.shape[1:])
        if self.even:
            return flat.view(shape)
        padded = flat.new_zeros(self.mask.numel(), *flat.shape[1:])
        return padded.index_copy(0, self.at, flat).view(shape)

    def flat(self, padded: Tensor) -> Tensor:
        """[B W ...] -> [m ...], without padding."""
        rows = padded.reshape(self.mask.numel(), *padded.shape[2:])
        return rows if self.even else rows.index_select(0, self.at)


def counted(lengths: Tensor, first: Tensor | int = 0) -> Tensor:
    """first, first + 1, ... for each row, one row after another: [sum of lengths]."""
    ends = lengths.cumsum(0)
    positions = torch.arange(int(lengths.sum()), device=lengths.device)
    return positions - (ends - lengths - first).repeat_interleave(lengths)


def fold(rows: Tensor, responses: int) -> Tensor:
    """[P*K H T ...] -> [P H K*T ...]: the K responses of a group one after another in one row."""
    grouped = rows.unflatten(0, (-1, responses)).transpose(1, 2)
    return grouped.flatten(2, 3)


def unfold(output: Tensor, responses: int) -> Tensor:
    """[P K*T H D] -> [P*K T H D]: each response in a row of its own again."""
    return output.unflatten(1, (responses, -1)).flatten(0, 1)


def of_each(responses: int, rows: slice, length: int, device: torch.device) -> Tensor:
    """[K*T] the positions of ``rows`` of each response in a folded row of ``length``."""
    starts = torch.arange(0, length, length // responses, device=device)
    return (starts[:, None] + torch.arange(rows.start, rows.stop, device=device)).flatten()
