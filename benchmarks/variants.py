"""The same passes without sharing a prompt among its candidates: what the shared ones are compared with."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from cagsr.attention.sharing import Sharing
from cagsr.models.causal import CausalPolicy
from cagsr.models.encoder_decoder import EncoderDecoderDecoder, EncoderDecoderPolicy
from cagsr.models.predictions import Predictions
from cagsr.types import Rollout

__all__ = ["EncodesEachCandidate", "ReadsEachCandidate", "apart"]


def apart(rollout: Rollout) -> Rollout:
    """The same rows as N groups of one."""
    k = rollout.group_size
    return replace(
        rollout,
        prompts=[prompt for prompt in rollout.prompts for _ in range(k)],
        prompt_ids=rollout.prompt_ids.repeat_interleave(k, 0),
        prompt_mask=rollout.prompt_mask.repeat_interleave(k, 0),
    )


class EncodesEachCandidate(EncoderDecoderPolicy):
    """Encoder and cross-attention's keys and values run once per response, in sampling, scoring and training."""

    def _predict(self, rollout: Rollout, hidden: bool) -> Predictions:
        return super()._predict(apart(rollout), hidden)

    def decoder(
        self, prompt_ids: Tensor, prompt_mask: Tensor, candidates: int, reads: bool
    ) -> EncoderDecoderDecoder:
        repeated = (tensor.repeat_interleave(candidates, 0) for tensor in (prompt_ids, prompt_mask))
        return super().decoder(*repeated, 1, reads)


class ReadsEachCandidate(CausalPolicy):
    """Every response is scored and observed as one whole sequence ``[prompt | response]``, and sampled alone."""

    def __init__(self, *given: Any, **settings: Any):
        super().__init__(*given, **settings)
        self.sharing = Sharing("a benchmark compares")
