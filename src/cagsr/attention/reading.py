"""Readable and Reading: the attention modules of a model that are read, and the attention summed over them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

import torch
from torch import Tensor, nn

from cagsr.attention.blocks import additive, attend, cut
from cagsr.attention.by_piece import ByPiece
from cagsr.attention.call import AttentionCall
from cagsr.attention.dispatch import add_attention
from cagsr.attention.rows import of_each
from cagsr.errors import InputError

__all__ = ["ATTENTION", "EachHead", "Readable", "Reading"]

ATTENTION = "cagsr"
"""The name to load a model with: ``from_pretrained(..., attn_implementation="cagsr")``.

It must not contain sdpa, flash or flex: transformers runs those backends' checks on any name that does.
"""


@dataclass(frozen=True)
class Readable:
    """The attention modules of one model that are read, in the order in which the model runs them.

    kind     "causal" (self-attention) or "encoder-decoder" (cross-attention).
    modules  selected by identity: a copy of the model needs its own ``Readable``.
    layers   their layer numbers in the model, counted from 0.
    total    how many layers of the model have attention that could be read.
    heads    what each head of each module weighs in the attention that is read: >= 0, 1 in all. None: all alike.
    """

    kind: str
    modules: tuple[nn.Module, ...]
    layers: tuple[int, ...]
    total: int
    heads: tuple[tuple[float, ...], ...] | None = None

    def weighted(self, weights: Mapping[int, Sequence[float]]) -> "Readable":
        """These modules with a weight >= 0 for each head of some layers, made to sum to 1; other layers are not read.

        Raises ValueError for weights that are all 0, negative, or of layers that are not readable.
        """
        chosen = {layer: row for layer, row in weights.items() if any(row)}
        total = sum(map(sum, chosen.values()))
        if not 0 < total < inf or min(map(min, chosen.values())) < 0 or not set(chosen) <= set(self.layers):
            raise ValueError(f"weights of heads must be finite, >= 0 and of layers {self.layers}")
        kept = [place for place, layer in enumerate(self.layers) if layer in chosen]
        layers = tuple(self.layers[place] for place in kept)
        heads = tuple(tuple(weight / total for weight in chosen[layer]) for layer in layers)
        return replace(self, modules=tuple(self.modules[place] for place in kept), layers=layers, heads=heads)

    def __str__(self) -> str:
        what = "self-attention" if self.kind == "causal" else "cross-attention"
        if self.heads is not None:
            read = sum(weight > 0 for row in self.heads for weight in row)
            what = f"{read} heads of {what}"
        return f"{what} of {len(self.layers)} of {self.total} layers ({', '.join(map(str, self.layers))})"


EachHead = Callable[[int, int, Tensor], None]
"""``each_head(place, head, attention [N T S])`` for each head of the module at that place of ``Readable.modules``."""


class Reading:
    """Attention summed over heads and modules while a model runs. ``attention`` is whole after the capture's block.

    With ``each_head`` nothing is summed: it is handed the attention of one head after another. With ``by_piece`` the
    sum is by piece (``looks``), and by token only where that says so.
    """

    def __init__(
        self,
        readable: Readable,
        rows: slice,
        columns: slice,
        each_head: EachHead | None = None,
        by_piece: ByPiece | None = None,
    ) -> None:
        self._modules = readable.modules
        self._shares = dict(zip(readable.modules, readable.heads or (), strict=readable.heads is not None))
        self._each_head, self._by_piece = each_head, by_piece
        self._rows, self._columns = rows, columns
        self._read: set[nn.Module] = set()
        self._sum: Tensor | None = None
        self._mask_of: tuple[Tensor | None, Tensor | None] = (None, None)
        self._bias: Tensor | None = None

    @property
    def attention(self) -> Tensor:
        """A [N T S], float32, in [0, 1]: mean over heads and modules, weighted if heads are; 0 in masked columns.

        A row that sees no key at all (padding) is 0. Raises RuntimeError unless every module was read.
        """
        self.check()
        assert self._sum is not None, "every module was read, and by token"
        return self._sum

    @property
    def found(self) -> dict[str, Tensor]:
        """What was read, by the names of `types.Observation`: ``attention`` [N T S], ``looks`` [N T J] or both."""
        self.check()
        return {"attention": self.attention} if self._by_piece is None else self._by_piece.found

    def check(self) -> None:
        """Raise RuntimeError unless every module was read."""
        missing = len(self._modules) - len(self._read)
        if missing:
            raise RuntimeError(
                f"{missing} of {len(self._modules)} attention modules were not called: run the model that "
                f'was inspected once inside `with capture(...)`, with attn_implementation="{ATTENTION}".'
            )

    def attend(self, call: AttentionCall) -> Tensor:
        """The attention output [N Q H D] as sdpa gives it; the module's attention weights are added to the sum."""
        causal = call.is_causal and call.mask is None and call.query.shape[2] > 1
        call = _without_later_keys(call) if causal else call
        bias = self._bias_for(replace(call, is_causal=causal))
        call = replace(call, mask=bias, position_bias=None, is_causal=causal and bias is None)
        length, device = call.query.shape[2], call.query.device
        rows, columns = _range(self._rows, length // call.responses), _range(self._columns, call.key.shape[2])
        if call.responses > 1:
            rows = of_each(call.responses, rows, length, device)
        output, lse = attend(call, rows)
        block = cut(bias, call.is_causal, rows, columns)
        self.add(replace(call, query=call.query[:, :, rows], key=call.key[:, :, columns], mask=block), lse)
        return output

    def add(self, call: AttentionCall, lse: Tensor) -> None:
        """Add a module's attention weights, exp(q k^T * scaling + mask - lse), to the sum; ``value`` is not looked at.

        query [P H K*T D], key [P G S D], lse [P H K*T] over all keys, mask as the bias of `blocks.add_attention`, with
        K = ``responses``.
        """
        self._check(call.module)
        groups, heads, length, columns = *call.query.shape[:3], call.key.shape[2]
        shares = self._shares.get(call.module) or (1.0 / (heads * len(self._modules)),) * heads
        if len(shares) != heads and self._each_head is None:
            raise InputError(
                f"reward.heads: weights for {len(shares)} heads of a layer that has {heads}; set it to learn"
            )
        if self._by_piece is not None:
            self._by_piece.add(call, lse, shares)
            return
        if self._sum is None:
            shape = (groups * call.responses, length // call.responses, columns)
            self._sum = torch.zeros(shape, dtype=torch.float32, device=call.query.device)
        total, given = (
            self._sum.view(groups, length, columns),
            (call.query, call.key, lse, call.mask, call.scaling),
        )
        if self._each_head is None:
            add_attention(total, *given, shares)
            return
        for head in range(heads):
            alone = torch.zeros_like(total)
            add_attention(alone, *given, [float(each == head) for each in range(heads)])
            self._each_head(self._modules.index(call.module), head, alone.view(self._sum.shape))

    def add_row(self, module: nn.Module, weights: Tensor) -> None:
        """Add a module's attention weights [N H S] that are known already, of one query a row."""
        self._check(module)
        if (shares := self._shares.get(module)) is None:
            mean = weights.float().mean(1, keepdim=True) / len(self._modules)
        else:
            mean = torch.einsum(
                "nhs,h->ns", weights.float(), weights.new_tensor(shares, dtype=torch.float32)
            )[:, None]
        self._sum = mean if self._sum is None else self._sum.add_(mean)

    def _check(self, module: nn.Module) -> None:
        if module in self._read:
            raise RuntimeError(
                f"{type(module).__name__} was called twice in one capture (by a second pass, or by gradient "
                "checkpointing): use one `with capture(...)` for one pass."
            )
        self._read.add(module)

    def release(self) -> None:
        """Drop the mask that was kept for the next layer."""
        self._mask_of, self._bias = (None, None), None

    def _bias_for(self, call: AttentionCall) -> Tensor | None:
        """The call's additive bias. The last one is kept, because layers share their masks."""
        if self._mask_of[0] is not call.mask or self._mask_of[1] is not call.position_bias:
            bias = additive(call)
            self._bias = None if bias is None else bias.expand(-1, -1, call.query.shape[2], -1)
            self._mask_of = (call.mask, call.position_bias)
        return self._bias


def _without_later_keys(call: AttentionCall) -> AttentionCall:
    """The call without keys after its last query (a static cache's): the causal flag counts from the upper left."""
    seen, bias = slice(0, call.query.shape[2]), call.position_bias
    return replace(
        call,
        key=call.key[:, :, seen],
        value=call.value[:, :, seen],
        position_bias=None if bias is None else bias[..., seen],
    )


def _range(wanted: slice, length: int) -> slice:
    start, stop, step = wanted.indices(length)
    if step != 1 or start >= stop or (wanted.stop is not None and wanted.stop > length):
        raise RuntimeError(f"capture of positions {wanted.start}:{wanted.stop}, but the model saw {length}.")
    return slice(start, stop)
