"""Decoding with a KV cache: a prompt is computed once for its K responses, and finished rows leave the batch.

*Differs from* transformers' ``generate``, which computes a prompt for each of its rows and keeps all rows until the
longest response ends. It still writes the responses of models that cannot share their prompts.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from cagsr.config.schema import Sampling
from cagsr.models.generation_rules import GenerationRules
from cagsr.models.sampling import WITHOUT_FLOAT64, draw

__all__ = ["Decoder", "Written", "decode"]

LEAVING = 0.25
"""The share of a batch's rows at whose end they leave it: that copies the cache of the rows that stay."""


class Decoder(Protocol):
    """Protocol of an incremental decoder: a model with a KV cache over a batch's rows, at first N = P * K."""

    def begin(self) -> Tensor:
        """[N V] logits of every response's first token."""
        ...

    def advance(self, tokens: Tensor) -> Tensor:
        """[n V] logits of the next token, after ``tokens`` [n]."""
        ...

    attention: Tensor
    """[n S] of the last pass, from the query that predicts the next token to the prompt's columns, if it reads."""

    def keep(self, rows: Tensor) -> None:
        """Drop all rows of the batch but these."""
        ...


Written = Callable[[int, Tensor, Tensor, Tensor], None]
"""Called after every step: its number t, the rows [n] of the N that write, their logits [n V] and their tokens [n]."""


def decode(
    decoder: Decoder,
    sampling: Sampling,
    uniform_NT: Tensor | None,
    eos_ids: list[int],
    pad_id: int,
    rules: GenerationRules,
    written: Written | None = None,
) -> Tensor:
    """Decode [N T] response tokens, ``pad_id`` after a row's end; T is the length of the longest.

    ``uniform_NT`` are the numbers that tokens are drawn by; None decodes greedily. ``rules`` say what is never drawn.
    ``written`` is told of rows that have ended too, for as long as they are in the batch, and of logits after the
    ``rules``.
    """
    logits = decoder.begin()
    device = logits.device
    if uniform_NT is not None and device.type != WITHOUT_FLOAT64:
        uniform_NT = uniform_NT.to(device)
    ends = torch.tensor(eos_ids, device=device)
    rows = torch.arange(len(logits), device=device)  # which response each row of the batch writes
    ended = torch.zeros_like(rows, dtype=torch.bool)
    response_ids = torch.full((len(rows), sampling.max_new_tokens), pad_id, device=device)
    for t in range(sampling.max_new_tokens):
        logits = rules.masked(logits, slice(None if t == 0 else 0))
        allowed = rules.drawable(logits.float())
        if t < sampling.min_new_tokens:
            allowed = allowed.index_fill(-1, ends, -torch.inf)
        numbers = None if uniform_NT is None else uniform_NT[rows.to(uniform_NT.device), t]
        tokens = draw(allowed, numbers, sampling).masked_fill(ended, pad_id)
        response_ids[rows, t] = tokens
        if written is not None:
            written(t, rows, logits, tokens)
        ended = ended | torch.isin(tokens, ends)
        if t + 1 == sampling.max_new_tokens or ended.all():
            return response_ids[:, : t + 1]
        if ended.sum() >= LEAVING * len(rows):
            staying = (~ended).nonzero().squeeze(-1)
            decoder.keep(staying)
            rows, tokens, ended = rows[staying], tokens[staying], ended[staying]
        logits = decoder.advance(tokens)
    return response_ids[:, :0]
