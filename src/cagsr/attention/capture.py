"""The attention implementation ``"cagsr"`` for transformers, and `capture`, which reads attention inside its SDPA pass.

Importing this module registers it. Outside of a capture it is transformers' ``sdpa`` unchanged, gradients included.
Inside ``with capture(...)`` the chosen modules take the log-sum-exp that the flash kernel has anyway and add
``exp(q k^T * scale + bias - lse)``, for response rows and prompt columns only, head by head into one [N T S] tensor.
No layer's attention matrix is ever formed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from cagsr.attention.by_piece import ByPiece
from cagsr.attention.call import AttentionCall
from cagsr.attention.reading import ATTENTION, EachHead, Readable, Reading
from cagsr.attention.rows import fold, unfold
from cagsr.attention.shared_cache import SharedCache
from cagsr.attention.shared_prompt import SharedPrompt
from cagsr.errors import UnsupportedModelError

ALL = slice(None)

# What some models hand to their attention function, and sdpa drops without a word or cannot do.
UNSUPPORTED = {"softcap": "a softcap", "s_aux": "attention sinks", "sinks": "attention sinks"}


@dataclass(frozen=True)
class CallShape:
    """The shape of one call of the attention function: its module, how many queries and keys, the window."""

    module: nn.Module
    queries: int
    keys: int
    window: int | None


_active: dict[nn.Module, Reading] = {}
_calls: list[CallShape] | None = None


@contextmanager
def capture(
    readable: Readable,
    rows: slice = ALL,
    columns: slice = ALL,
    each_head: EachHead | None = None,
    by_piece: ByPiece | None = None,
) -> Iterator[Reading]:
    """Context manager that reads attention A [N T S] in the one forward pass that a model makes inside the block.

    rows     the T query positions whose attention is read: ``slice(S - 1, S - 1 + T)`` for a causal model
             that is fed prompt and response, all of them for the decoder of an encoder-decoder.
    columns  the S key positions of the prompt.

    each_head  is handed the attention of every head alone, instead of a sum: see `reading.EachHead`.
    by_piece   adds up attention by pieces of the columns instead; ``reading.found`` then holds it.

    ``reading.attention`` holds the result when the block has ended. It is the softmax before dropout.

    Raises RuntimeError if gradients are on, or if a module is called twice, never, or is being read already.
    """
    if torch.is_grad_enabled():
        raise RuntimeError("attention is read without gradient: wrap the capture in torch.no_grad().")
    if any(module in _active for module in readable.modules):
        raise RuntimeError("these attention modules are being read already: captures cannot be nested.")
    reading = Reading(readable, rows, columns, each_head, by_piece)
    _active.update(dict.fromkeys(readable.modules, reading))
    try:
        yield reading
    finally:
        reading.release()
        for module in readable.modules:
            del _active[module]
    reading.check()  # raises where the pass happened, not where the result is used


@contextmanager
def recorded_calls() -> Iterator[list[CallShape]]:
    """Context manager that lists the shape of every call of the attention function inside the block, in order."""
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
    """The attention function that transformers calls: sdpa, and a reading of the modules that a capture has chosen.

    With ``shared_prompt`` one row holds prompts and responses (see `SharedPrompt` and `SharedCache`). With queries
    of more rows than keys, row n reads keys n // K: cross-attention of K responses to their prompt.

    Raises UnsupportedModelError for attention that sdpa does not compute: softcap and sinks.
    """
    _refuse_unsupported(module, kwargs)
    window = kwargs.get("sliding_window")
    if _calls is not None:
        _calls.append(CallShape(module, query.shape[2], key.shape[2], window))
    reading = _active_reading(module)
    responses = query.shape[0] // key.shape[0]
    if responses > 1:
        query, position_bias = _folded(query, position_bias, responses)
    if reading is None and shared_prompt is None:
        given = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal, **kwargs}
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, position_bias=position_bias, **given
        )
        return unfold(output, responses), None
    call = AttentionCall(
        module,
        query,
        key,
        value,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        mask=attention_mask,
        position_bias=position_bias,
        dropout=dropout,
        is_causal=bool(getattr(module, "is_causal", True) if is_causal is None else is_causal),
        window=window,
        responses=responses,
    )
    return unfold(_attend(call, shared_prompt, reading), responses), None


def _folded(query: Tensor, bias: Tensor | None, responses: int) -> tuple[Tensor, Tensor | None]:
    """Queries of a group in one row, so that keys and values are read once; the bias is alike for each of the group."""
    if bias is not None:
        bias = bias.repeat(1, 1, responses, 1) if bias.any() else None
    return fold(query, responses), bias


def _active_reading(module: nn.Module) -> Reading | None:
    reading = _active.get(module)
    if reading is not None and torch.is_grad_enabled():
        raise RuntimeError("attention is read without gradient: wrap the pass in torch.no_grad().")
    return reading


def _attend(
    call: AttentionCall, shared: SharedPrompt | SharedCache | None, reading: Reading | None
) -> Tensor:
    """The attention output of a call that shares prompts, is read, or both."""
    device = call.query.device.type
    if torch.is_autocast_enabled(device):
        # Autocast changes sdpa's inputs (a rotary query is float32 beside a bfloat16 value), but not those of the flash
        # kernel; and it would round our own float32 scores. A CPU takes five times as long to differentiate its
        # kernel in bfloat16 as in float32.
        kind = torch.float32 if device == "cpu" else torch.get_autocast_dtype(device)
        call = replace(call, query=call.query.to(kind), key=call.key.to(kind), value=call.value.to(kind))
    with torch.autocast(device, enabled=False):
        if shared is None:
            assert reading is not None, "sdpa computes what is neither shared nor read"
            return reading.attend(call)
        if call.mask is None or call.mask.numel() != 1:
            raise UnsupportedModelError(
                f"{type(call.module).__name__} makes another mask than it is given. Choose another model."
            )
        return shared.attend(call, reading)


def _refuse_unsupported(module: nn.Module, given: dict[str, Any]) -> None:
    for name, what in UNSUPPORTED.items():
        if given.get(name) is not None:
            raise UnsupportedModelError(
                f"{type(module).__name__} uses {what}, which the {ATTENTION!r} attention cannot compute "
                "exactly. Choose a model without it."
            )


AttentionInterface.register(ATTENTION, attention_forward)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
