"""Token sampling: temperature, top-k and top-p, random numbers per prompt, and where a response ends."""

import hashlib
from typing import Protocol, cast

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from cagsr.config.schema import Sampling
from cagsr.errors import NumericsError
from cagsr.types import Prompt, Rollout

__all__ = ["InverseTransform", "Sampler", "cumulated", "draw", "response_mask", "uniforms"]

WITHOUT_FLOAT64 = "mps"


class Sampler(Protocol):
    """Protocol of a source of rollouts: the policy itself, or an engine that has the policy's current weights.

    ``held_to_policy`` says whether its responses are held to the policy's own log-probabilities before anything is
    learnt from them, because nobody here sees which weights it has.
    """

    @property
    def held_to_policy(self) -> bool: ...

    def sample(self, prompts: list[Prompt], sampling: Sampling, seed: int = 0) -> Rollout: ...


def uniforms(prompts: list[Prompt], sampling: Sampling, seed: int) -> Tensor:
    """[N T] uniform random numbers in [0, 1), a function of the seed and each prompt's own index and occurrence.

    A group's randomness does not depend on which other prompts are in its batch or on which process it is
    sampled, so one process and many write the same responses.
    """
    draws = []
    for prompt in prompts:
        # The first occurrence is named without its number, as it was when runs were recorded.
        again = f"/{prompt.occurrence}" if prompt.occurrence else ""
        digest = hashlib.blake2b(f"{seed}/{prompt.index}{again}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big", signed=True))
        shape = (sampling.candidates, sampling.max_new_tokens)
        draws.append(torch.rand(shape, generator=generator, dtype=torch.float64))
    return torch.cat(draws)


def draw(scores: Tensor, uniform_n: Tensor | None, sampling: Sampling) -> Tensor:
    """Sample a token [n] for each row of ``scores`` [n V], by inverse transform from its own number in [0, 1).

    Temperature, top-k and top-p are applied first. None for the numbers takes the likeliest token. Raises
    NumericsError for logits that no token can be drawn from.
    """
    if uniform_n is None:
        return scores.argmax(-1)
    cumulative = cumulated(scores, sampling)
    # Scaled to the last sum, which rounding leaves a little off 1; strictly below it, so that a token of
    # probability 0 is never drawn.
    target = uniform_n[:, None].to(cumulative) * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    if chosen.max() >= scores.shape[-1]:
        raise NumericsError(
            "the model's logits are not finite, so that no token can be drawn; the weights may have diverged. Lower "
            "train.learning_rate, train in float32, or go back to an earlier checkpoint."
        )
    return chosen.to(scores.device)


def cumulated(scores: Tensor, sampling: Sampling) -> Tensor:
    """[n V] float64: the probabilities of all tokens up to each, after temperature, top-k and top-p."""
    warped = _warpers(sampling)(cast(torch.LongTensor, None), cast(torch.FloatTensor, scores))
    if warped.device.type == WITHOUT_FLOAT64:
        warped = warped.cpu()
    return warped.double().softmax(-1).cumsum(-1)


def _warpers(sampling: Sampling) -> LogitsProcessorList:
    warpers = LogitsProcessorList()
    if sampling.temperature != 1.0:
        warpers.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    return warpers


class InverseTransform(LogitsProcessor):
    """Logits processor that draws each row's token and masks all others: for greedy decoding by ``generate``."""

    def __init__(self, sampling: Sampling, uniform_NT: Tensor):
        self.sampling, self.uniform_NT, self.step = sampling, uniform_NT, 0

    def __call__(self, input_ids: torch.LongTensor, scores: Tensor) -> Tensor:
        chosen = draw(scores, self.uniform_NT[:, self.step], self.sampling)
        self.step += 1
        return torch.full_like(scores, float("-inf")).scatter(-1, chosen[:, None], 0.0)


def response_mask(response_ids: Tensor, eos_ids: list[int]) -> tuple[Tensor, Tensor]:
    """Mask of responses, ``(mask [N T], finished [N])``: all tokens to the first end-of-sequence token, included.

    Decided by position, not by comparing with the pad token: with ``pad == eos`` the written end-of-sequence stays
    in the response and the padding after it does not.
    """
    ends = torch.isin(response_ids, torch.tensor(eos_ids, device=response_ids.device))
    ended_before = ends.cumsum(-1) - ends.long()
    return ended_before == 0, ends.any(-1)
