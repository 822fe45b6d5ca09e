"""Log-probability, entropy and related facts of chosen tokens, computed over a few rows of logits at a time.

The plain way keeps several float32 copies of all logits, [N T V] each: scaled, normalised, exponentiated, and the same
again for the backward pass. Here only the logits themselves and their gradient are that large.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["Facts", "facts", "token_likelihood", "token_logprobs"]

CHUNK = 1 << 18
"""Logits that a CPU processes at a time: 1 MB in float32, which its caches hold. Elsewhere 64 times as many."""

IMPOSSIBLE = -87.0
"""Log of about the smallest normal float32: the log-probability of a token at -inf, which a sum must not make NaN."""


class Facts(NamedTuple):
    """Facts of R chosen tokens, float32: logprobs, confidence, entropy, certainty [R] and prompt_logprobs [R S].

    Each as `types.Observation` defines it. S is 0 where nobody asked for prompt_logprobs.
    """

    logprobs: Tensor
    confidence: Tensor
    entropy: Tensor
    certainty: Tensor
    prompt_logprobs: Tensor


def token_likelihood(
    logits: Tensor, place: Tensor, tokens: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """``log p(token)`` and the entropy in nats, float32 [R] each, of softmax(logits[place] / temperature).

    logits  [M V]  of any float dtype; several tokens may be chosen at one place.
    place   [R]    row of each token;  tokens  [R]  in 0 .. V - 1.

    Differentiable once, in both results.
    """
    return _TokenLikelihood.apply(logits, place, tokens, temperature)


@torch.no_grad()
def token_logprobs(logits: Tensor, place: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """The first result of `token_likelihood` alone, without gradient."""
    found = [
        _of(_log_softmax(logits, place[rows], temperature), tokens[rows, None]).squeeze(-1)
        for rows in _chunks(place, logits)
    ]
    return torch.cat(found)


@torch.no_grad()
def facts(logits: Tensor, place: Tensor, tokens: Tensor, others: Tensor, temperature: float) -> Facts:
    """`Facts` of the chosen ``tokens`` at ``place``; ``others`` [R S] are the prompt tokens of each."""
    found = []
    for rows in _chunks(place, logits):
        logprobs = _log_softmax(logits, place[rows], temperature)
        written = _of(logprobs, tokens[rows, None]).squeeze(-1)
        confidence = (written - logprobs.amax(-1)).exp()
        others_of_rows = _of(logprobs, others[rows])
        found.append((written, confidence, _entropy(logprobs), _certainty(logprobs), others_of_rows))
    return Facts(*(torch.cat(each) for each in zip(*found, strict=True)))


class _TokenLikelihood(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, place: Tensor, tokens: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        written = torch.empty(len(place), dtype=torch.float32, device=logits.device)
        entropy = torch.empty_like(written)
        for rows in _chunks(place, logits):
            logprobs = _log_softmax(logits, place[rows], temperature)
            written[rows] = _of(logprobs, tokens[rows, None]).squeeze(-1)
            entropy[rows] = _entropy(logprobs)
        ctx.save_for_backward(logits, place, tokens, entropy)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return written, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """With p = softmax(z / T): d log p_y / dz = (1_y - p) / T,  d H / dz = -p (log p + H) / T."""
        logits, place, tokens, entropy = ctx.saved_tensors
        # None where a loss does not use that result.
        by_written, by_entropy = grad_outputs
        by_written = torch.zeros_like(entropy) if by_written is None else by_written
        gradient = torch.zeros_like(logits)
        for rows in _chunks(place, logits):
            scaled = _scaled(logits, place[rows], ctx.temperature)
            by_token = by_written[rows, None] / ctx.temperature
            factor = -by_token
            if by_entropy is not None:
                logprobs = scaled.log_softmax(-1).clamp_(IMPOSSIBLE)
                factor = factor - by_entropy[rows, None] / ctx.temperature * (logprobs + entropy[rows, None])
            by_logits = scaled.softmax(-1).mul_(factor).scatter_add_(-1, tokens[rows, None], by_token)
            gradient.index_add_(0, place[rows], by_logits.to(logits.dtype))
        return gradient, None, None, None


def _chunks(place: Tensor, logits: Tensor) -> Iterator[slice]:
    size = CHUNK if logits.device.type == "cpu" else 64 * CHUNK
    step = max(1, size // logits.shape[-1])
    return (slice(start, start + step) for start in range(0, len(place), step))


def _scaled(logits: Tensor, place: Tensor, temperature: float) -> Tensor:
    chosen = logits.index_select(0, place).float()
    return chosen if temperature == 1.0 else chosen.div_(temperature)


def _log_softmax(logits: Tensor, place: Tensor, temperature: float) -> Tensor:
    return _scaled(logits, place, temperature).log_softmax(-1)


def _of(logprobs: Tensor, tokens: Tensor) -> Tensor:
    chosen = logprobs.gather(-1, tokens)
    return chosen.masked_fill(chosen.isneginf(), IMPOSSIBLE)


def _certainty(logprobs: Tensor) -> Tensor:
    """KL(uniform || p), where uniform is over the tokens that can be drawn."""
    possible = ~logprobs.isneginf()
    if possible.all():
        return -logprobs.mean(-1) - torch.log(torch.tensor(float(logprobs.shape[-1])))
    count = possible.sum(-1)
    return -logprobs.where(possible, 0).sum(-1) / count - count.log()


def _entropy(logprobs: Tensor) -> Tensor:
    return logprobs.exp().mul_(logprobs.clamp(IMPOSSIBLE)).sum(-1).neg()
