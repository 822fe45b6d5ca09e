"""Reading attention inside the ordinary SDPA pass of a transformers model.

Importing this module registers the attention implementation ``"cagsr"``. Where nobody reads, it is
transformers' ``sdpa`` unchanged, gradients included. Inside ``with capture(...)`` the chosen modules take the
log-sum-exp that the flash kernel has anyway and add ``exp(q k * scale + bias - lse)``, for response rows and
prompt columns only, head by head into one [N T S] tensor. The attention matrix of a layer is never formed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import create_position_bias_mask, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from ..errors import UnsupportedModelError

ATTENTION = "cagsr"
"""The name to load a model with: ``from_pretrained(..., attn_implementation="cagsr")``.

It must not contain sdpa, flash or flex: transformers runs those backends' checks on any name that does.
"""

BLOCK = 1 << 20
"""Scores computed at a time: 4 MB, about what a core's cache holds."""

ALL = slice(None)


@dataclass(frozen=True)
class Readable:
    """The attention modules of one model that are read, in the order in which the model runs them.

    kind     "causal" (self-attention) or "encoder-decoder" (cross-attention).
    modules  selected by identity: a copy of the model needs its own ``Readable``.
    layers   their layer numbers in the model, counted from 0.
    total    how many layers of the model have attention that could be read.
    """

    kind: str
    modules: tuple[nn.Module, ...]
    layers: tuple[int, ...]
    total: int

    def __str__(self) -> str:
        what = "self-attention" if self.kind == "causal" else "cross-attention"
        return f"{what} of {len(self.layers)} of {self.total} layers ({', '.join(map(str, self.layers))})"


@dataclass(frozen=True)
class Call:
    """One call of the attention function: which module, and how many queries and keys it saw."""

    module: nn.Module
    queries: int
    keys: int


_active: dict[nn.Module, "Reading"] = {}
_calls: list[Call] | None = None


class Reading:
    """What one ``capture`` has read. Use ``attention`` after the block has ended."""

    def __init__(self, readable: Readable, rows: slice, columns: slice) -> None:
        self._modules = readable.modules
        self._rows, self._columns = rows, columns
        self._read: set[nn.Module] = set()
        self._sum: Tensor | None = None
        self._bias_of: tuple[Any, Any, Tensor | None] = (None, None, None)

    @property
    def attention(self) -> Tensor:
        """A [N T S], float32, in [0, 1]: mean over heads and modules. Columns that the mask hides are exactly 0.

        A row that sees no key at all (padding) is 0. Raises RuntimeError unless every module was read.
        """
        missing = len(self._modules) - len(self._read)
        if self._sum is None or missing:
            raise RuntimeError(
                f"{missing} of {len(self._modules)} attention modules were not called: run the model that was "
                f'inspected once inside `with capture(...)`, with attn_implementation="{ATTENTION}".'
            )
        return self._sum

    def read(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        position_bias: Tensor | None,
        scale: float,
        dropout: float,
        is_causal: bool,
    ) -> Tensor:
        """Attention output [N Q H D] as sdpa gives it; adds the module's rows and columns to the sum."""
        if torch.is_grad_enabled():
            raise RuntimeError("attention is read without gradient: wrap the pass in torch.no_grad().")
        if module in self._read:
            raise RuntimeError(
                f"{type(module).__name__} was called twice in one capture (a second pass, or recomputation for "
                "gradient checkpointing): use one `with capture(...)` for one pass."
            )
        self._read.add(module)
        is_causal = is_causal and mask is None and query.shape[2] > 1
        if is_causal:
            # The causal flag is aligned to the upper left, so later keys (a static cache) are never seen.
            key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
        bias = self._bias(mask, position_bias, is_causal, query, key)
        is_causal = is_causal and bias is None
        output, lse = _attend(module, query, key, value, bias, scale, dropout, is_causal)

        rows, columns = _range(self._rows, query.shape[2]), _range(self._columns, key.shape[2])
        query = query[:, :, rows]
        if lse is None:
            lse = _log_sum_exp(
                query, key, _block(bias, is_causal, rows, slice(0, key.shape[2]), query), scale
            )
        else:
            lse = lse[:, :, rows]
        # Where a row sees nothing, lse is the mask's own huge negative number and would cancel it.
        lse = lse.masked_fill(lse < torch.finfo(query.dtype).min / 2, torch.inf)
        if self._sum is None:
            shape = (query.shape[0], rows.stop - rows.start, columns.stop - columns.start)
            self._sum = torch.zeros(shape, dtype=torch.float32, device=query.device)
        share = 1.0 / (query.shape[1] * len(self._modules))
        key = key[:, :, columns]
        _accumulate(self._sum, query, key, lse, _block(bias, is_causal, rows, columns, query), scale, share)
        return output

    def _bias(
        self, mask: Tensor | None, position_bias: Tensor | None, is_causal: bool, query: Tensor, key: Tensor
    ) -> Tensor | None:
        """The additive mask in the query's dtype. Layers share their masks, so the last one is kept."""
        if mask is None and position_bias is None:
            return None
        if self._bias_of[0] is not mask or self._bias_of[1] is not position_bias:
            self._bias_of = (mask, position_bias, _additive(mask, position_bias, is_causal, query, key))
        return self._bias_of[2]


@contextmanager
def capture(readable: Readable, rows: slice = ALL, columns: slice = ALL) -> Iterator[Reading]:
    """Read A [N T S] while the model runs once inside the block.

    rows     the T query positions whose attention is read: ``slice(S - 1, S - 1 + T)`` for a causal model that
             is fed prompt and response, all of them for the decoder of an encoder-decoder.
    columns  the S key positions of the prompt.

    ``reading.attention`` holds the result when the block has ended. It is the softmax before dropout.

    Raises RuntimeError if gradients are on, if a module is called twice or never, or is being read already.
    """
    if torch.is_grad_enabled():
        raise RuntimeError("attention is read without gradient: wrap the capture in torch.no_grad().")
    if any(module in _active for module in readable.modules):
        raise RuntimeError("these attention modules are being read already: captures cannot be nested.")
    reading = Reading(readable, rows, columns)
    _active.update(dict.fromkeys(readable.modules, reading))
    try:
        yield reading
    finally:
        for module in readable.modules:
            del _active[module]
    _ = reading.attention  # an incomplete reading is an error here, where it happened
    reading._bias_of = (None, None, None)


@contextmanager
def recorded_calls() -> Iterator[list[Call]]:
    """Every call of the attention function inside the block, in order."""
    global _calls
    outer, _calls = _calls, []
    try:
        yield _calls
    finally:
        _calls = outer


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls: sdpa, and a reading where one is under way."""
    for name, what in (("softcap", "a softcap"), ("s_aux", "attention sinks"), ("sinks", "attention sinks")):
        if kwargs.get(name) is not None:
            raise UnsupportedModelError(
                f"{type(module).__name__} uses {what}, which the {ATTENTION!r} attention cannot compute exactly. "
                "Choose a model without it."
            )
    if _calls is not None:
        _calls.append(Call(module, query.shape[2], key.shape[2]))
    reading = _active.get(module)
    if reading is None:
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            is_causal=is_causal,
            position_bias=position_bias,
            **kwargs,
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    output = reading.read(
        module, query, key, value, attention_mask, position_bias, scale, dropout, bool(is_causal)
    )
    return output, None


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    scale: float,
    dropout: float,
    is_causal: bool,
) -> tuple[Tensor, Tensor | None]:
    """Output [N Q H D], and the log-sum-exp [N H Q] where the kernel that sdpa would take gives one."""
    if query.device.type == "cpu" and dropout == 0.0 and query.shape[-1] == key.shape[-1] == value.shape[-1]:
        output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, is_causal, attn_mask=bias, scale=scale
        )
        return output.transpose(1, 2).contiguous(), lse
    output, _ = sdpa_attention_forward(
        module, query, key, value, bias, dropout=dropout, scaling=scale, is_causal=is_causal
    )
    return output, None


def _additive(
    mask: Tensor | None, position_bias: Tensor | None, is_causal: bool, query: Tensor, key: Tensor
) -> Tensor | None:
    # T5 hands cross-attention a bias of zeros; added to the mask it would cost [N H Q K].
    if position_bias is not None and position_bias.any():
        return create_position_bias_mask(position_bias, mask, is_causal, query, key).to(query.dtype)
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        hidden = torch.zeros(mask.shape, dtype=query.dtype, device=mask.device)
        return hidden.masked_fill_(~mask, -torch.inf)
    return mask.to(query.dtype)


def _range(wanted: slice, length: int) -> slice:
    start, stop, step = wanted.indices(length)
    if step != 1 or start >= stop or (wanted.stop is not None and wanted.stop > length):
        raise RuntimeError(f"capture of positions {wanted.start}:{wanted.stop} of {length}: no such range.")
    return slice(start, stop)


def _block(bias: Tensor | None, is_causal: bool, rows: slice, columns: slice, like: Tensor) -> Tensor | None:
    """The bias of these rows and columns, [1|N 1|H T S], or None where it is 0 throughout."""
    if bias is not None:
        return bias[:, :, rows, columns].float()
    if not is_causal or rows.start + 1 >= columns.stop:
        return None
    t = torch.arange(rows.start, rows.stop, device=like.device)[:, None]
    s = torch.arange(columns.start, columns.stop, device=like.device)
    return torch.zeros(t.shape[0], s.shape[0], device=like.device).masked_fill_(s > t, -torch.inf)[None, None]


def _head(bias: Tensor, rows: slice, head: int) -> Tensor:
    """[1|N T S] of one head and these batch rows, whether or not the bias is shared by rows or heads."""
    bias = bias[rows] if bias.shape[0] > 1 else bias
    return bias[:, head if bias.shape[1] > 1 else 0]


def _log_sum_exp(query: Tensor, key: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """[N H T], float32, a few rows at a time: for kernels that keep theirs to themselves."""
    batch, heads, length, _ = query.shape
    repeats = heads // key.shape[1]
    lse = torch.empty(batch, heads, length, dtype=torch.float32, device=query.device)
    step = max(1, BLOCK // (batch * key.shape[2]))
    for head in range(heads):
        key_h = key[:, head // repeats].float().transpose(1, 2)
        for start in range(0, length, step):
            rows = slice(start, start + step)
            scores = torch.bmm(query[:, head, rows].float(), key_h).mul_(scale)
            if bias is not None:
                scores += _head(bias, ALL, head)[:, rows]
            lse[:, head, rows] = scores.logsumexp(-1)
    return lse


def _accumulate(
    total: Tensor, query: Tensor, key: Tensor, lse: Tensor, bias: Tensor | None, scale: float, share: float
) -> None:
    """total [N T S] += share * sum over heads of exp(q k * scale + bias - lse), without an [H T S] tensor."""
    batch, heads, length, _ = query.shape
    repeats = heads // key.shape[1]
    step = max(1, BLOCK // (length * key.shape[2]))
    if bias is None:
        bias = torch.zeros((), device=query.device).expand(1, 1, length, key.shape[2])
    buffer = torch.empty_like(total[:step])
    for start in range(0, batch, step):
        rows = slice(start, min(start + step, batch))
        weights = buffer[: rows.stop - rows.start]
        for head in range(heads):
            torch.sub(_head(bias, rows, head), lse[rows, head, :, None], out=weights)
            weights.baddbmm_(
                query[rows, head].float(), key[rows, head // repeats].float().transpose(1, 2), alpha=scale
            )
            total[rows].add_(weights.exp_(), alpha=share)


AttentionInterface.register(ATTENTION, attention_forward)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
