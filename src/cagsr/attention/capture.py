"""Reading attention inside the ordinary SDPA pass of a transformers model.

Importing this module registers the attention implementation ``"cagsr"``. Where nobody reads, it is
transformers' ``sdpa`` unchanged, gradients included. Inside ``with capture(...)`` the chosen modules take the
log-sum-exp that the flash kernel has anyway and add ``exp(q k^T * scale + bias - lse)``, for response rows
and prompt columns only, head by head into one [N T S] tensor. No layer's attention matrix is ever formed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from cagsr.attention.blocks import additive, attend, cut
from cagsr.attention.dispatch import add_attention
from cagsr.attention.shared_cache import SharedCache
from cagsr.attention.shared_prompt import SharedPrompt, fold, of_each, unfold
from cagsr.errors import UnsupportedModelError

ATTENTION = "cagsr"
"""The name to load a model with: ``from_pretrained(..., attn_implementation="cagsr")``.

It must not contain sdpa, flash or flex: transformers runs those backends' checks on any name that does.
"""

ALL = slice(None)

# What some models hand to their attention function, and sdpa drops without a word or cannot do.
UNSUPPORTED = {"softcap": "a softcap", "s_aux": "attention sinks", "sinks": "attention sinks"}


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
    """One call of the attention function: which module, how many queries and keys it saw, within which window."""

    module: nn.Module
    queries: int
    keys: int
    window: int | None


_active: dict[nn.Module, "Reading"] = {}
_calls: list[Call] | None = None


class Reading:
    """What one ``capture`` has read. Use ``attention`` after the block has ended."""

    def __init__(self, readable: Readable, rows: slice, columns: slice) -> None:
        self._modules = readable.modules
        self._rows, self._columns = rows, columns
        self._read: set[nn.Module] = set()
        self._sum: Tensor | None = None
        self._mask_of: tuple[Tensor | None, Tensor | None] = (None, None)
        self._bias: Tensor | None = None

    @property
    def attention(self) -> Tensor:
        """A [N T S], float32, in [0, 1]: mean over heads and modules, 0 in columns that the mask hides.

        A row that sees no key at all (padding) is 0. Raises RuntimeError unless every module was read.
        """
        missing = len(self._modules) - len(self._read)
        if self._sum is None or missing:
            raise RuntimeError(
                f"{missing} of {len(self._modules)} attention modules were not called: run the model that "
                f'was inspected once inside `with capture(...)`, with attn_implementation="{ATTENTION}".'
            )
        return self._sum

    def attend(
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
        responses: int = 1,
    ) -> Tensor:
        """The attention output [N Q H D] as sdpa gives it; adds what the module attended to to the sum.

        ``responses`` is how many of a group are folded into one row of queries (see `shared_prompt.fold`).
        """
        is_causal = is_causal and mask is None and query.shape[2] > 1
        if is_causal:
            # The causal flag counts from the upper left: later keys (a static cache) are never seen.
            key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
            position_bias = None if position_bias is None else position_bias[..., : query.shape[2]]
        bias = self._bias_for(mask, position_bias, is_causal, query, key)
        is_causal = is_causal and bias is None

        rows, columns = _range(self._rows, query.shape[2] // responses), _range(self._columns, key.shape[2])
        if responses > 1:
            rows = of_each(responses, rows, query.shape[2], query.device)
        output, lse = attend(module, query, key, value, bias, is_causal, scale, dropout, rows)
        block = cut(bias, is_causal, rows, columns)
        self.add(module, query[:, :, rows], key[:, :, columns], lse, block, scale, responses)
        return output

    def add(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        lse: Tensor,
        bias: Tensor | None,
        scale: float,
        responses: int,
    ) -> None:
        """Add the module's share of exp(q k^T * scale + bias - lse) to the sum.

        query [P H K*T D], key [P G S D], lse [P H K*T], bias as of `blocks.add_attention`, K = ``responses``.
        """
        self._check(module)
        groups, heads, length, columns = *query.shape[:3], key.shape[2]
        if self._sum is None:
            shape = (groups * responses, length // responses, columns)
            self._sum = torch.zeros(shape, dtype=torch.float32, device=query.device)
        share = 1.0 / (heads * len(self._modules))
        add_attention(self._sum.view(groups, length, columns), query, key, lse, bias, scale, share)

    def add_row(self, module: nn.Module, weights: Tensor) -> None:
        """The same where the weights are at hand: those [N H S] of one query a row."""
        self._check(module)
        mean = weights.float().mean(1, keepdim=True) / len(self._modules)
        self._sum = mean if self._sum is None else self._sum.add_(mean)

    def _check(self, module: nn.Module) -> None:
        if module in self._read:
            raise RuntimeError(
                f"{type(module).__name__} was called twice in one capture (by a second pass, or by gradient "
                "checkpointing): use one `with capture(...)` for one pass."
            )
        self._read.add(module)

    def release(self) -> None:
        """Let go of the masks that were kept for the next layer."""
        self._mask_of, self._bias = (None, None), None

    def _bias_for(
        self, mask: Tensor | None, position_bias: Tensor | None, is_causal: bool, query: Tensor, key: Tensor
    ) -> Tensor | None:
        """The additive bias of this layer. Layers share their masks, so the last one is kept."""
        if self._mask_of[0] is not mask or self._mask_of[1] is not position_bias:
            bias = additive(mask, position_bias, is_causal, query, key)
            self._bias = None if bias is None else bias.expand(-1, -1, query.shape[2], -1)
            self._mask_of = (mask, position_bias)
        return self._bias


@contextmanager
def capture(readable: Readable, rows: slice = ALL, columns: slice = ALL) -> Iterator[Reading]:
    """Read A [N T S] while the model runs once inside the block.

    rows     the T query positions whose attention is read: ``slice(S - 1, S - 1 + T)`` for a causal model
             that is fed prompt and response, all of them for the decoder of an encoder-decoder.
    columns  the S key positions of the prompt.

    ``reading.attention`` holds the result when the block has ended. It is the softmax before dropout.

    Raises RuntimeError if gradients are on, or if a module is called twice, never, or is being read already.
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
        reading.release()
        for module in readable.modules:
            del _active[module]
    _ = reading.attention  # raises where the pass happened, not where the result is used


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
    shared_prompt: SharedPrompt | SharedCache | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls: sdpa, and a reading where one is under way.

    With ``shared_prompt`` one row holds prompts and responses (see `SharedPrompt` and `SharedCache`). With queries
    of more rows than keys, row n reads keys n // K: cross-attention of K responses to their prompt.

    Raises UnsupportedModelError for attention that sdpa does not compute: softcap and sinks.
    """
    for name, what in UNSUPPORTED.items():
        if kwargs.get(name) is not None:
            raise UnsupportedModelError(
                f"{type(module).__name__} uses {what}, which the {ATTENTION!r} attention cannot compute "
                "exactly. Choose a model without it."
            )
    window = kwargs.get("sliding_window")
    if _calls is not None:
        _calls.append(Call(module, query.shape[2], key.shape[2], window))
    reading = _active.get(module)
    if reading is not None and torch.is_grad_enabled():
        raise RuntimeError("attention is read without gradient: wrap the pass in torch.no_grad().")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    responses, device = query.shape[0] // key.shape[0], query.device.type
    if responses > 1:
        # Folded, so that keys and values are read once; the position bias is alike for each of the group.
        query = fold(query, responses)
        if position_bias is not None:
            position_bias = position_bias.repeat(1, 1, responses, 1) if position_bias.any() else None
    if reading is None and shared_prompt is None:
        output, _ = sdpa_attention_forward(
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
        return unfold(output, responses), None
    if torch.is_autocast_enabled(device):
        # Autocast changes sdpa's inputs (a rotary query is float32 beside a bfloat16 value), but not those of the flash
        # kernel; and it would round our own float32 scores.
        query, key, value = (each.to(torch.get_autocast_dtype(device)) for each in (query, key, value))
    with torch.autocast(device, enabled=False):
        if shared_prompt is not None:
            if attention_mask is None or attention_mask.numel() != 1:
                raise UnsupportedModelError(
                    f"{type(module).__name__} makes another mask than it is given. Choose another model."
                )
            return shared_prompt.attend(module, query, key, value, scale, dropout, window, reading), None
        assert reading is not None
        causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
        output = reading.attend(
            module, query, key, value, attention_mask, position_bias, scale, dropout, causal, responses
        )
    return unfold(output, responses), None


def _range(wanted: slice, length: int) -> slice:
    start, stop, step = wanted.indices(length)
    if step != 1 or start >= stop or (wanted.stop is not None and wanted.stop > length):
        raise RuntimeError(f"capture of positions {wanted.start}:{wanted.stop}, but the model saw {length}.")
    return slice(start, stop)


AttentionInterface.register(ATTENTION, attention_forward)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
