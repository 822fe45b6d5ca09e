"""Encoder-decoders: the prompt goes through the encoder, the response reads it by cross-attention."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from cagsr.attention.capture import Reading, capture
from cagsr.errors import UnsupportedModelError
from cagsr.policy.policy import Policy
from cagsr.types import Rollout

__all__ = ["EncoderDecoderPolicy"]


class EncoderDecoderPolicy(Policy):
    """Decoder position t reads response tokens 0 .. t - 1 and predicts token t: the shift is in `_decoder_inputs`.

    Prompts are padded on the right: BART's learned positions count from column 0. The encoder runs once per
    prompt, also with gradients; its K candidates share the result.
    """

    padding_side = "right"

    def response_pass(self, rollout: Rollout, hidden: bool) -> tuple[Tensor, Tensor | None]:
        k = rollout.group_size
        encoded = self._encode(rollout.prompt_ids, rollout.prompt_mask)
        output = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded.repeat_interleave(k, 0)),
            attention_mask=rollout.prompt_mask.repeat_interleave(k, 0).long(),
            decoder_input_ids=self._decoder_inputs(rollout.response_ids),
            use_cache=False,
            output_hidden_states=hidden,
        )
        return output.logits, output.decoder_hidden_states[-1] if hidden else None

    def reading(self, rollout: Rollout) -> AbstractContextManager[Reading]:
        prompt, response = rollout.prompt_ids.shape[1], rollout.response_ids.shape[1]
        return capture(self.readable, rows=slice(0, response), columns=slice(0, prompt))

    def prefill(self, prompt_ids: Tensor, prompt_mask: Tensor, candidates: int) -> dict[str, Any]:
        encoded = self._encode(prompt_ids, prompt_mask)
        return {
            "encoder_outputs": BaseModelOutput(last_hidden_state=encoded.repeat_interleave(candidates, 0)),
            "attention_mask": prompt_mask.repeat_interleave(candidates, 0).long(),
        }

    def _encode(self, prompt_ids: Tensor, prompt_mask: Tensor) -> Tensor:
        return self.model.get_encoder()(
            input_ids=prompt_ids, attention_mask=prompt_mask.long()
        ).last_hidden_state

    def _decoder_inputs(self, response_ids: Tensor) -> Tensor:
        start = self.model.generation_config.decoder_start_token_id
        if start is None:
            raise UnsupportedModelError(
                "the model names no decoder_start_token_id, so a response cannot begin. "
                "Set it in the model's generation_config.json."
            )
        first = torch.full_like(response_ids[:, :1], start)
        return torch.cat([first, response_ids[:, :-1]], 1)
