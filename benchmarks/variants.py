"""The same passes without sharing a prompt among its candidates: what the shared ones are compared with."""

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cagsr.attention.capture import Reading, capture
from cagsr.policy.causal import CausalPolicy
from cagsr.policy.encoder_decoder import EncoderDecoderPolicy
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
    """The encoder runs once per response, in sampling, scoring and training."""

    def response_pass(self, rollout: Rollout, hidden: bool) -> tuple[Tensor, Tensor | None]:
        return super().response_pass(apart(rollout), hidden)

    def prefill(self, prompt_ids: Tensor, prompt_mask: Tensor, candidates: int) -> dict[str, Any]:
        repeated = (tensor.repeat_interleave(candidates, 0) for tensor in (prompt_ids, prompt_mask))
        return super().prefill(*repeated, 1)


class ReadsEachCandidate(CausalPolicy):
    """Every response is scored and observed as one whole sequence ``[prompt | response]``."""

    def response_pass(self, rollout: Rollout, hidden: bool) -> tuple[Tensor, Tensor | None]:
        rows, width = apart(rollout), rollout.response_ids.shape[1]
        mask = torch.cat([rows.prompt_mask, rows.response_mask], 1).long()
        output = self.model(
            input_ids=torch.cat([rows.prompt_ids, rows.response_ids], 1),
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            use_cache=False,
            output_hidden_states=hidden,
            logits_to_keep=width + 1,
        )
        states = output.hidden_states[-1][:, -width - 1 : -1] if hidden else None
        return output.logits[:, -width - 1 : -1], states

    def reading(self, rollout: Rollout) -> AbstractContextManager[Reading]:
        prompt, response = rollout.prompt_ids.shape[1], rollout.response_ids.shape[1]
        return capture(self.readable, rows=slice(prompt - 1, prompt - 1 + response), columns=slice(0, prompt))
