"""Policy of encoder-decoders: the encoder reads the prompt, and the response reads it by cross-attention."""

from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from cagsr.attention.by_piece import ByPiece
from cagsr.attention.capture import capture
from cagsr.attention.positions import longest_text
from cagsr.attention.reading import EachHead
from cagsr.errors import UnsupportedModelError
from cagsr.models.policy import Policy
from cagsr.models.predictions import Predictions, places
from cagsr.types import Rollout

__all__ = ["EncoderDecoderPolicy"]


class EncoderDecoderPolicy(Policy):
    """Policy of an encoder-decoder, whose decoder reads its prefix and response tokens 0 .. t - 1 and predicts token t.

    The prefix is the decoder's start token and, where the model's generation config forces a first token (``<s>``
    for many a BART, the language for mBART), that one too. It is given and not chosen, so it is no part of the
    response: neither scored, nor trained, nor read.

    Prompts are padded on the right: BART's learned positions count from column 0. The encoder runs once per
    prompt, also with gradients; its K candidates share the result, and where the model allows it (``sharing``) the
    keys and values that cross-attention makes of it.
    """

    padding_side = "right"

    def __init__(self, model: PreTrainedModel, *given: Any, **settings: Any):
        super().__init__(model, *given, **settings)
        # Kept, because `generate` runs under another generation config than the model's own.
        forced = "forced_bos_token_id" not in settings.get("ignored", ())
        self._prefix = _prefix(model, forced)
        encoder, decoder = (cast(PreTrainedModel, half()) for half in (model.get_encoder, model.get_decoder))
        self.context = longest_text(encoder, encoder.config.get_text_config(), "encoder")
        written = longest_text(decoder, model.config.get_text_config(decoder=True), "decoder")
        # The last token is never an input, so it needs no position.
        self.response_limit = None if written is None else written - len(self._prefix) + 1

    def _predict(self, rollout: Rollout, hidden: bool) -> Predictions:
        k = rollout.group_size
        encoded, mask = self.encode_prompts(rollout.prompt_ids, rollout.prompt_mask), rollout.prompt_mask
        if self.sharing.possible:
            mask = mask[:, None, None]  # of four dimensions transformers hands it on as it is
        else:
            encoded, mask = encoded.repeat_interleave(k, 0), mask.repeat_interleave(k, 0).long()
        output = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
            attention_mask=mask,
            decoder_input_ids=self._decoder_inputs(rollout.response_ids),
            use_cache=False,
            output_hidden_states=hidden,
        )
        rows, width = rollout.response_ids.shape
        first = len(self._prefix) - 1
        states = output.decoder_hidden_states[-1].flatten(0, 1) if hidden else None
        place = places(rows, width, first + width, first, self.device)
        return Predictions(output.logits.flatten(0, 1), place, states)

    def _read(
        self, rollout: Rollout, each_head: EachHead | None = None, by_piece: ByPiece | None = None
    ) -> tuple[Predictions, dict[str, Tensor]]:
        prompt, response = rollout.prompt_ids.shape[1], rollout.response_ids.shape[1]
        first = len(self._prefix) - 1
        rows, columns = slice(first, first + response), slice(0, prompt)
        with capture(self.readable, rows, columns, each_head, by_piece) as reading:
            predictions = self._predict(rollout, hidden=False)
        return predictions, reading.found

    def decoder(
        self, prompt_ids: Tensor, prompt_mask: Tensor, candidates: int, reads: bool
    ) -> "EncoderDecoderDecoder":
        return EncoderDecoderDecoder(self, prompt_ids, prompt_mask, candidates, reads)

    def begun(self, rows: int) -> dict[str, Tensor]:
        return {"decoder_input_ids": self.prefixes(rows)}

    def encode_prompts(self, prompt_ids: Tensor, prompt_mask: Tensor) -> Tensor:
        """Encoder output [P S D] of the prompts."""
        return self.model.get_encoder()(
            input_ids=prompt_ids, attention_mask=prompt_mask.long()
        ).last_hidden_state

    def prefixes(self, rows: int) -> Tensor:
        """[rows prefix] the decoder tokens that every response begins with."""
        return torch.tensor([self._prefix], device=self.device).expand(rows, -1)

    def _decoder_inputs(self, response_ids: Tensor) -> Tensor:
        return torch.cat([self.prefixes(len(response_ids)), response_ids[:, :-1]], 1)


class EncoderDecoderDecoder:
    """Incremental decoder; cross-attention's keys and values are made once per prompt, and shared until rows leave."""

    def __init__(
        self,
        policy: EncoderDecoderPolicy,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        candidates: int,
        reads: bool,
    ):
        self.model, self.readable, self.reads = policy.model, policy.readable, reads
        self.candidates, self.shared = candidates, True
        self.encoded = policy.encode_prompts(prompt_ids, prompt_mask)
        self.mask = prompt_mask[:, None, None]
        self.prefixes = policy.prefixes(candidates * len(prompt_ids))
        # Without a config, which may count the encoder's layers or forget what the decoder's mask lets it see.
        self.cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

    def begin(self) -> Tensor:
        """[N V] logits of every response's first token."""
        return self._pass(self.prefixes)

    def advance(self, tokens: Tensor) -> Tensor:
        """[n V] logits of the next token, after ``tokens`` [n]."""
        return self._pass(tokens[:, None])

    def keep(self, rows: Tensor) -> None:
        """Drop all rows of the batch but these."""
        prompts = rows
        if self.shared:  # each row needs its prompt for itself once groups are no longer whole
            prompts, self.shared = rows // self.candidates, False
        self.cache.self_attention_cache.batch_select_indices(rows)
        self.cache.cross_attention_cache.batch_select_indices(prompts)
        self.mask, self.encoded = self.mask[prompts], self.encoded[prompts]

    def _pass(self, ids: Tensor) -> Tensor:
        last = slice(ids.shape[1] - 1, ids.shape[1])
        with capture(self.readable, last) if self.reads else nullcontext() as reading:
            output = self.model(
                encoder_outputs=BaseModelOutput(last_hidden_state=self.encoded),
                attention_mask=self.mask,
                decoder_input_ids=ids,
                past_key_values=self.cache,
                use_cache=True,
            )
        if reading is not None:
            self.attention = reading.attention[:, 0]
        return output.logits[:, -1]


def _prefix(model: PreTrainedModel, with_forced: bool) -> list[int]:
    names = ("decoder_start_token_id", "forced_bos_token_id")[: 1 + with_forced]
    config, known = model.generation_config, model.config.get_text_config(decoder=True).vocab_size
    if config.decoder_start_token_id is None:
        raise UnsupportedModelError(
            "the model names no decoder_start_token_id, so a response cannot begin. "
            "Set it in the model's generation_config.json."
        )
    found = []
    for name in names:
        token = getattr(config, name)
        if token is None:
            continue
        if type(token) is not int or not 0 <= token < known:
            raise UnsupportedModelError(
                f"the model's {name} is {token!r}, and every response begins with it: set it in the model's "
                f"generation_config.json to one token id, from 0 to {known - 1}"
            )
        found.append(token)
    return found
