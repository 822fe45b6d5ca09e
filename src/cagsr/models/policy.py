"""`Policy`, a language model that samples, scores and observes; what both architectures share."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cagsr.attention.by_piece import ByPiece
from cagsr.attention.inspection import evaluating
from cagsr.attention.reading import EachHead, Readable
from cagsr.attention.sharing import Sharing, Tried
from cagsr.config.schema import Sampling
from cagsr.io.adapters import Base
from cagsr.models.decoding import Decoder, Written, decode
from cagsr.models.generation_rules import GenerationRules
from cagsr.models.hf_generate import generate
from cagsr.models.predictions import (
    Predictions,
    Scored,
    in_rows,
    joined,
    joined_readings,
    observed,
    pieces_read,
)
from cagsr.models.read_while_writing import ReadWhileWriting
from cagsr.models.sampling import response_mask, uniforms
from cagsr.models.token_logprobs import Facts, facts, token_likelihood, token_logprobs
from cagsr.models.tokenized_model import TokenizedModel
from cagsr.models.value_head import ValueHead
from cagsr.types import EVERYTHING, Observation, Prompt, Rollout, Wanted

__all__ = ["Policy"]


class Policy(TokenizedModel, ABC):
    """The model being trained, with its tokenizer; `TokenizedModel` has what concerns texts.

    ``forward`` is the differentiated pass, so that a wrapper (DistributedDataParallel, autocast) around the policy
    wraps it. Log-probabilities, entropy and confidence are of the distribution at ``temperature``, the one that
    responses are sampled from; top-p and top-k are not part of it, as is usual in this field. Tokens that the model's
    generation config forbids are (``rules``): they are never drawn, and score `token_logprobs.IMPOSSIBLE`.
    ``ignored`` are settings of that config which are left out.

    The network stays in evaluation mode, whatever mode the policy is in (`train`), and its dropout rates are 0
    (``dropout`` is what it is saved with): sampling, scoring and observing see the same network, and the ratio of a
    first update is exactly 1.

    ``proof`` says how the ways of computing agreed with the plain model when the policy was made (`models.proof`).
    """

    held_to_policy: bool = False  # it is the policy (`models.sampling.Sampler`)

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        readable: Readable,
        sharing: Sharing,
        *,
        temperature: float = 1.0,
        critic: bool = False,
        dropout: dict[str, float] | None = None,
        ignored: Sequence[str] = (),
    ):
        super().__init__(model, tokenizer, readable)
        self.sharing, self.temperature = sharing, temperature
        self.dropout = dropout or {}
        self.proof: tuple[Tried, ...] = ()
        self.base: Base | None = None  # what its adapter can be saved for; `load_policy` finds out
        rules = GenerationRules.of(model.generation_config, self.eos_ids, readable.kind == "causal", ignored)
        self.rules = replace(rules, undrawn=self.undrawn)
        self.value_head = ValueHead(_hidden_width(model)) if critic else None

    # Defined by an architecture ---------------------------------------------------------------------------

    @abstractmethod
    def _predict(self, rollout: Rollout, hidden: bool) -> Predictions:
        """`predict` in one pass."""

    @abstractmethod
    def _read(
        self, rollout: Rollout, each_head: EachHead | None = None, by_piece: ByPiece | None = None
    ) -> tuple[Predictions, dict[str, Tensor]]:
        """`read` in one pass, with ``each_head`` and ``by_piece`` as of `attention.capture`."""

    @abstractmethod
    def decoder(self, prompt_ids: Tensor, prompt_mask: Tensor, candidates: int, reads: bool) -> Decoder:
        """An incremental decoder of N responses, each prompt computed once, which also ``reads`` attention if told to.

        For models that can share (``sharing``).
        """

    def begun(self, rows: int) -> dict[str, Tensor]:
        """Decoder inputs that ``rows`` responses begin with, for ``generate``; empty for a causal model."""
        return {}

    # Sampling, scoring and observing --------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self, prompts: list[Prompt], sampling: Sampling, seed: int = 0, written: Written | None = None
    ) -> Rollout:
        """Sample K candidates per prompt. The same seed and prompts give the same responses in any batch.

        ``written`` is called as by `models.decoding.decode`; never where responses cannot share their prompt.

        Raises InputError where the model's generation config asks for what is not kept (``rules``).
        """
        self.rules.check()
        prompt_ids, prompt_mask = self._asked(prompts, sampling)
        numbers = uniforms(prompts, sampling, seed) if sampling.temperature > 0 else None
        # In training mode with gradient checkpointing, layers drop the cache that they are handed.
        with evaluating(self.model):
            if self._shares(prompt_ids, sampling):
                decoder = self.decoder(prompt_ids, prompt_mask, sampling.candidates, reads=False)
                ends = (self.eos_ids, self.pad_id)
                response_ids = decode(decoder, sampling, numbers, *ends, self.rules, written)
            else:
                response_ids = self.generated(prompt_ids, prompt_mask, sampling, numbers)
        return self._rollout(prompts, prompt_ids, prompt_mask, response_ids)

    @torch.no_grad()
    def sample_observed(
        self, prompts: list[Prompt], sampling: Sampling, seed: int = 0, wanted: Wanted = EVERYTHING
    ) -> tuple[Rollout, Observation | None]:
        """`sample`, and what `observe` would say of the rollout, read while decoding instead of in a pass over it.

        None where the responses cannot share their prompt (``sharing``): transformers' own loop writes them, and reads
        nothing meanwhile; `observe` can then be asked part by part.

        What is ``wanted`` is held for the whole rollout, from the first token on: attention and prompt_logprobs take 4
        bytes each for a prompt column and response token.
        """
        self.rules.check()
        prompt_ids, prompt_mask = self._asked(prompts, sampling)
        if not self._shares(prompt_ids, sampling):
            return self.sample(prompts, sampling, seed), None
        numbers = uniforms(prompts, sampling, seed) if sampling.temperature > 0 else None
        with evaluating(self.model):
            decoder = self.decoder(prompt_ids, prompt_mask, sampling.candidates, reads=True)
            shape = (len(prompts) * sampling.candidates, sampling.max_new_tokens)
            reader = ReadWhileWriting(
                decoder, prompts, prompt_ids, prompt_mask, shape, self.temperature, wanted
            )
            ends = (self.eos_ids, self.pad_id)
            response_ids = decode(decoder, sampling, numbers, *ends, self.rules, reader)
        rollout = self._rollout(prompts, prompt_ids, prompt_mask, response_ids)
        return rollout, reader.observation(rollout)

    def _shares(self, prompt_ids: Tensor, sampling: Sampling) -> bool:
        return self.sharing.allows(prompt_ids.shape[1] + sampling.max_new_tokens)

    def _asked(self, prompts: list[Prompt], sampling: Sampling) -> tuple[Tensor, Tensor]:
        """`collate`, for prompts that leave the responses room."""
        prompt_ids, prompt_mask = self.collate(prompts)
        self._demand_positions(prompt_mask, torch.full((len(prompts),), sampling.max_new_tokens))
        return prompt_ids, prompt_mask

    def generated(
        self,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        sampling: Sampling,
        uniform_NT: Tensor | None,
        logits: list[Tensor] | None = None,
    ) -> Tensor:
        """[N T] response tokens by transformers' ``generate``, of all prompts at once or prompt by prompt.

        To ``logits`` those of each ``generate`` are appended, [n T V].
        """
        k, count = sampling.candidates, len(prompt_ids)
        found = []
        for start in range(0, count, 1 if self._alone else count):
            of = slice(start, start + 1 if self._alone else count)
            used = prompt_mask[of].any(0)
            numbers = None if uniform_NT is None else uniform_NT[of.start * k : of.stop * k]
            begun = self.begun(k * (of.stop - of.start))
            settings = (begun, sampling, numbers, self.eos_ids, self.pad_id, self.rules, logits)
            found += generate(self.model, prompt_ids[of][:, used], prompt_mask[of][:, used], *settings)
        return pad_sequence(found, batch_first=True, padding_value=self.pad_id)

    @property
    def _alone(self) -> bool:
        return not self.sharing.padded

    def _rollout(
        self, prompts: list[Prompt], prompt_ids: Tensor, prompt_mask: Tensor, response_ids: Tensor
    ) -> Rollout:
        mask, finished = response_mask(response_ids, self.eos_ids)
        response_ids = response_ids.masked_fill(~mask, self.pad_id)
        return Rollout(
            prompts=prompts,
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            response_ids=response_ids,
            response_mask=mask,
            finished=finished,
            responses=self.decode(response_ids, mask),
        )

    def predict(self, rollout: Rollout, hidden: bool = False) -> Predictions:
        """A pass over given responses, and the place in its logits where each of their tokens is predicted.

        Raises InputError for a prompt or response that the model has no positions for.
        """
        self._demand_positions(rollout.prompt_mask, rollout.lengths)
        return joined([self._predict(part, hidden) for part in self._parts(rollout)], rollout)

    def read(self, rollout: Rollout, wanted: Wanted = EVERYTHING) -> tuple[Predictions, dict[str, Tensor]]:
        """`predict`, and the ``attention`` [N T S] of each response's rows to its prompt's columns in that pass.

        Where [N T S] is large, ``looks`` [N T J] at the pieces that are ``wanted`` instead, or too.
        """
        self._demand_positions(rollout.prompt_mask, rollout.lengths)
        mask = rollout.prompt_mask
        pieces = pieces_read(rollout.prompts, mask, rollout.response_ids.shape, wanted)
        parts, found = self._parts(rollout), []
        for prompt, part in enumerate(parts):
            by_piece = None
            if pieces is not None:
                own = pieces if len(parts) == 1 else pieces[[prompt]][:, :, mask[prompt]]
                by_piece = ByPiece(own, wanted.by_token)
            found.append(self._read(part, by_piece=by_piece))
        return joined_readings(found, rollout)

    def _parts(self, rollout: Rollout) -> list[Rollout]:
        """What goes through the model at once: all of a rollout, or a prompt with its responses."""
        whole = rollout.prompt_ids.shape[1] + rollout.response_ids.shape[1]
        if len(rollout.prompts) == 1 or not self._alone or self.sharing.allows(whole):
            return [rollout]
        return list(rollout.split(1))

    def train(self, mode: bool = True) -> Self:
        """Training mode of the modules that transformers asks for it before it recomputes activations, and of no other.

        Nothing in the network may be random then: a policy is trained on what it sampled.
        """
        super().train(mode)
        for module in self.model.modules():
            module.training = mode and hasattr(module, "gradient_checkpointing")
        return self

    def forward(self, rollout: Rollout) -> Scored:
        """Score a rollout: log-probabilities, entropy and values of the responses, with gradients."""
        predictions, mask = self.predict(rollout, hidden=self.value_head is not None), rollout.response_mask
        place, tokens = predictions.place[mask], rollout.response_ids[mask]
        logprobs, entropy = token_likelihood(self._allowed(predictions), place, tokens, self.temperature)
        values = None
        if self.value_head is not None:
            values = in_rows(self.value_head(predictions.hidden)[place], mask)
        return Scored(in_rows(logprobs, mask), in_rows(entropy, mask), values)

    @torch.no_grad()
    def observe(self, rollout: Rollout, wanted: Wanted = EVERYTHING) -> Observation:
        """Attention to the prompt, and log-probabilities, of one pass over given responses: see `types.Observation`."""
        predictions, on_prompt = self.read(rollout, wanted)
        mask, prompt_ids = rollout.response_mask, rollout.prompt_ids
        if not wanted.prompt_logprobs:
            prompt_ids = prompt_ids[:, :0]
        place, tokens, others = (
            predictions.place[mask],
            rollout.response_ids[mask],
            prompt_ids[mask.nonzero()[:, 0] // rollout.group_size],
        )
        found = facts(self._allowed(predictions), place, tokens, others, self.temperature)
        return observed(rollout, on_prompt, Facts(*(in_rows(each, mask) for each in found)))

    @torch.no_grad()
    def observe_heads(self, rollout: Rollout, reduce: Callable[[Tensor], Tensor]) -> dict[int, list[Tensor]]:
        """What ``reduce`` makes of the attention [N T S] of each head alone: for each layer read, a list over heads.

        ``reduce`` treats rows alike, each by itself. The attention of one head at a time is in memory, 0 at padding.
        """
        self._demand_positions(rollout.prompt_mask, rollout.lengths)
        k, layers = rollout.group_size, self.readable.layers
        columns = rollout.prompt_mask.repeat_interleave(k, 0)[:, None, :] & rollout.response_mask[:, :, None]
        parts = self._parts(rollout)
        found: list[dict[int, list[Tensor]]] = [{layer: [] for layer in layers} for _ in parts]
        for number, part in enumerate(parts):
            rows = slice(0, len(columns)) if len(parts) == 1 else slice(number * k, (number + 1) * k)

            def each_head(
                place: int, head: int, attention: Tensor, number: int = number, rows: slice = rows
            ) -> None:
                whole = attention
                if len(parts) > 1:
                    whole = attention.new_zeros(columns.shape)
                    whole[rows, : attention.shape[1], rollout.prompt_mask[number]] = attention
                found[number][layers[place]].append(reduce(whole * columns)[rows])

            self._read(part, each_head)
        heads = {layer: len(found[0][layer]) for layer in layers}
        return {
            layer: [torch.cat([of_part[layer][head] for of_part in found]) for head in range(count)]
            for layer, count in heads.items()
        }

    @torch.no_grad()
    def logprobs(self, rollout: Rollout) -> Tensor:
        """[N T] log-probabilities of the response tokens, 0 at padding; nothing else is computed."""
        predictions, mask = self.predict(rollout), rollout.response_mask
        place, tokens = predictions.place[mask], rollout.response_ids[mask]
        return in_rows(token_logprobs(self._allowed(predictions), place, tokens, self.temperature), mask)

    def _allowed(self, predictions: Predictions) -> Tensor:
        """The logits [M V] of a pass, -inf where the model's generation config forbids a token."""
        return self.rules.masked(predictions.logits, predictions.place[:, 0])


def _hidden_width(model: PreTrainedModel) -> int:
    return cast(nn.Linear, model.get_output_embeddings()).in_features
