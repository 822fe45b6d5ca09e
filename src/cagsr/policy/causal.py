"""Causal language models: one sequence ``[prompt | response]``, read by self-attention."""

import inspect
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from cagsr.attention.capture import Reading, capture
from cagsr.policy.policy import Policy
from cagsr.types import Rollout

__all__ = ["CausalPolicy"]


class CausalPolicy(Policy):
    """Prompts are padded on the left, so column S - 1 is every prompt's last token.

    Position S - 1 + t of the sequence predicts response token t. This is the only place that shifts: logits,
    hidden states (values) and attention rows all take `_predicting`.
    """

    padding_side = "left"

    def response_pass(self, rollout: Rollout, hidden: bool) -> tuple[Tensor, Tensor | None]:
        k, width = rollout.group_size, rollout.response_ids.shape[1]
        ids = torch.cat([rollout.prompt_ids.repeat_interleave(k, 0), rollout.response_ids], 1)
        mask = torch.cat([rollout.prompt_mask.repeat_interleave(k, 0), rollout.response_mask], 1)
        keep = {"logits_to_keep": width + 1} if self._can_keep() else {}
        output = self.model(
            input_ids=ids,
            attention_mask=mask.long(),
            position_ids=_positions(mask),
            use_cache=False,
            output_hidden_states=hidden,
            **keep,
        )
        states = self._predicting(output.hidden_states[-1], width) if hidden else None
        return self._predicting(output.logits, width), states

    def reading(self, rollout: Rollout) -> AbstractContextManager[Reading]:
        prompt, response = rollout.prompt_ids.shape[1], rollout.response_ids.shape[1]
        return capture(self.readable, rows=slice(prompt - 1, prompt - 1 + response), columns=slice(0, prompt))

    def prefill(self, prompt_ids: Tensor, prompt_mask: Tensor, candidates: int) -> dict[str, Any]:
        """All prompt tokens but the last go through the model once per prompt; the cache is then repeated."""
        cache = DynamicCache(config=self.model.config)
        if prompt_ids.shape[1] > 1:
            head = prompt_mask[:, :-1]
            keep = {"logits_to_keep": 1} if self._can_keep() else {}
            self.model(
                input_ids=prompt_ids[:, :-1],
                attention_mask=head.long(),
                position_ids=_positions(head),
                past_key_values=cache,
                use_cache=True,
                **keep,
            )
            cache.batch_repeat_interleave(candidates)
        return {
            "input_ids": prompt_ids.repeat_interleave(candidates, 0),
            "attention_mask": prompt_mask.repeat_interleave(candidates, 0).long(),
            "past_key_values": cache,
        }

    @staticmethod
    def _predicting(sequence: Tensor, width: int) -> Tensor:
        """[N .. D] -> [N T D]: the positions that predict the ``width`` response tokens."""
        return sequence[:, -width - 1 : -1]

    def _can_keep(self) -> bool:
        unwrap = getattr(self.model, "get_base_model", lambda: self.model)
        return "logits_to_keep" in inspect.signature(unwrap().forward).parameters


def _positions(mask: Tensor) -> Tensor:
    """Positions count real tokens only, so padding on the left moves nothing."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)
