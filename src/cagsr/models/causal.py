"""Policy of causal language models: one sequence ``[prompt | response]``, read by self-attention."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cagsr.attention.by_piece import ByPiece
from cagsr.attention.capture import capture
from cagsr.attention.positions import first_position, longest_text
from cagsr.attention.reading import EachHead
from cagsr.attention.shared_cache import SharedCache
from cagsr.attention.shared_prompt import SharedPrompt
from cagsr.attention.sharing import can_keep
from cagsr.errors import UnsupportedModelError
from cagsr.models.policy import Policy
from cagsr.models.predictions import Predictions, places
from cagsr.types import Rollout

__all__ = ["CausalPolicy"]


class CausalPolicy(Policy):
    """Policy of a causal model; a prompt is computed once for all its responses (`attention.shared_prompt`).

    Where a model cannot do that (``sharing`` says why), each response goes with a prompt of its own, padded on the
    left (or alone with its responses), and position S - 1 + t of the sequence predicts response token t.
    """

    padding_side = "left"

    def __init__(self, model: PreTrainedModel, *given: Any, **settings: Any):
        super().__init__(model, *given, **settings)
        self.first_position = first_position(model)
        self.context = longest_text(model, model.config.get_text_config(decoder=True))
        self.response_limit = None

    def _predict(self, rollout: Rollout, hidden: bool) -> Predictions:
        if self.sharing.allows(rollout.prompt_ids.shape[1] + rollout.response_ids.shape[1]):
            return self._sharing(SharedPrompt(rollout.prompt_mask, rollout.response_mask), rollout, hidden)
        return self._one_by_one(rollout, hidden)

    def _read(
        self, rollout: Rollout, each_head: EachHead | None = None, by_piece: ByPiece | None = None
    ) -> tuple[Predictions, dict[str, Tensor]]:
        if self.sharing.allows(rollout.prompt_ids.shape[1] + rollout.response_ids.shape[1]):
            shared = SharedPrompt(rollout.prompt_mask, rollout.response_mask)
            placed = each_head and (
                lambda at, head, attention: each_head(at, head, shared.on_columns(attention))
            )
            if by_piece is not None:
                by_piece = ByPiece(shared.off_columns(by_piece.pieces), by_piece.by_token)
            with capture(self.readable, each_head=placed, by_piece=by_piece) as reading:
                predictions = self._sharing(shared, rollout, hidden=False)
            found = reading.found
            if "attention" in found:
                found["attention"] = shared.on_columns(found["attention"])
            return predictions, found
        prompt, response = rollout.prompt_ids.shape[1], rollout.response_ids.shape[1]
        rows, columns = slice(prompt - 1, prompt - 1 + response), slice(0, prompt)
        with capture(self.readable, rows, columns, each_head, by_piece) as reading:
            predictions = self._one_by_one(rollout, hidden=False)
        return predictions, reading.found

    def _sharing(self, shared: SharedPrompt, rollout: Rollout, hidden: bool) -> Predictions:
        """Forward pass with shared prompts: all prompts and all response tokens in one row, each prompt once."""
        keep = {"logits_to_keep": shared.predicting} if self.can_keep else {}
        output = self.model(
            input_ids=shared.row(rollout.prompt_ids, rollout.response_ids),
            attention_mask=shared.mask,
            position_ids=shared.positions + self.first_position,
            shared_prompt=shared,
            use_cache=False,
            output_hidden_states=hidden,
            **keep,
        )
        if not shared.asked:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} does not hand keywords on to its attention. Choose another model."
            )
        logits = output.logits[0] if keep else output.logits[0, shared.predicting]
        states = output.hidden_states[-1][0, shared.predicting] if hidden else None
        return Predictions(logits, shared.place, states)

    def _one_by_one(self, rollout: Rollout, hidden: bool) -> Predictions:
        """Forward pass for models that cannot share prompts: each prompt again with each of its responses."""
        k, width = rollout.group_size, rollout.response_ids.shape[1]
        ids = torch.cat([rollout.prompt_ids.repeat_interleave(k, 0), rollout.response_ids], 1)
        mask = torch.cat([rollout.prompt_mask.repeat_interleave(k, 0), rollout.response_mask], 1)
        keep = {"logits_to_keep": width + 1} if self.can_keep else {}
        # Alone, a prompt stands at the beginning of its row, where the model needs nobody to count its positions.
        positions = {} if self._alone else {"position_ids": _positions(mask) + self.first_position}
        output = self.model(
            input_ids=ids,
            attention_mask=mask.long(),
            **positions,
            use_cache=False,
            output_hidden_states=hidden,
            **keep,
        )
        # The positions that predict the response: one before each of its tokens.
        kept = output.logits[:, -width - 1 :]
        states = output.hidden_states[-1][:, -width - 1 :].flatten(0, 1) if hidden else None
        return Predictions(kept.flatten(0, 1), places(len(ids), width, width + 1, 0, ids.device), states)

    def decoder(
        self, prompt_ids: Tensor, prompt_mask: Tensor, candidates: int, reads: bool
    ) -> "CausalDecoder":
        """The `CausalDecoder` of a batch of prompts."""
        return CausalDecoder(self, prompt_ids, prompt_mask, candidates, reads)

    @property
    def can_keep(self) -> bool:
        """Whether the model computes logits only at chosen positions (``logits_to_keep``)."""
        return can_keep(getattr(self.model, "get_base_model", lambda: self.model)())


class CausalDecoder:
    """Incremental decoder; a pass is one row: first all prompts, then the last token of each unfinished response."""

    def __init__(
        self, policy: CausalPolicy, prompt_ids: Tensor, prompt_mask: Tensor, candidates: int, reads: bool
    ):
        self.policy, self.prompt_ids, self.reads = policy, prompt_ids, reads
        self.cache = SharedCache(prompt_mask, candidates)

    def begin(self) -> Tensor:
        """[N V] logits of every response's first token, after one pass over the prompts."""
        logits = self._pass(self.cache.ids(self.prompt_ids), self.cache.ends)
        return logits.repeat_interleave(self.cache.group_size, 0)

    def advance(self, tokens: Tensor) -> Tensor:
        """[n V] logits of the next token, after ``tokens`` [n]."""
        logits = self._pass(tokens[None], torch.arange(len(tokens), device=tokens.device))
        self.cache.written += 1
        return logits

    def keep(self, rows: Tensor) -> None:
        """Drop all rows of the batch but these."""
        self.cache.keep(rows)

    def _pass(self, ids: Tensor, predicting: Tensor) -> Tensor:
        """[m V] logits at the positions ``predicting`` of the row ``ids`` [1 m]."""
        keep = {"logits_to_keep": predicting} if self.policy.can_keep else {}
        with capture(self.policy.readable) if self.reads else nullcontext() as reading:
            logits = self.policy.model(
                input_ids=ids,
                attention_mask=self.cache.mask,
                position_ids=self.cache.positions + self.policy.first_position,
                shared_prompt=self.cache,
                use_cache=False,
                **keep,
            ).logits[0]
        if reading is not None:
            self.attention = self.cache.on_columns(reading.attention[:, 0])
        return logits if keep else logits[predicting]


def _positions(mask: Tensor) -> Tensor:
    """Position ids that count real tokens only, so that left padding moves nothing."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)
