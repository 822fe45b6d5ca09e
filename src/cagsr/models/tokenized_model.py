"""`TokenizedModel`, a model with its tokenizer: texts become batches of tokens that it has positions for, and back."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cagsr.attention.positions import skipped_token
from cagsr.attention.reading import Readable
from cagsr.data.chat_template import turn_end
from cagsr.data.make_prompt import no_position, text_ids
from cagsr.errors import InputError
from cagsr.types import Prompt, Rollout

__all__ = ["TokenizedModel"]


class TokenizedModel(nn.Module):
    """A language model with its tokenizer, of either architecture.

    context         positions for a prompt (and its response, if causal); None: any number.
    response_limit  most tokens of a response, whatever its prompt; None where nothing but the context limits it.
    undrawn         tokens that are never drawn: inside a response the model would take them for padding.
    skipped         token that a causal model takes for padding wherever it stands, so that no text can have it inside.
    """

    padding_side: str
    context: int | None
    response_limit: int | None

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, readable: Readable):
        super().__init__()
        self.model, self.tokenizer, self.readable = model, tokenizer, readable
        self.eos_ids = _eos_ids(model, tokenizer)
        skipped = skipped_token(model)
        # Inside a response it would stand elsewhere in a pass over the whole than where it was drawn.
        self.undrawn: tuple[int, ...] = () if skipped is None or skipped in self.eos_ids else (skipped,)
        self.skipped = skipped if readable.kind == "causal" else None
        padding = tokenizer.pad_token_id
        self.pad_id = padding if isinstance(padding, int) else self.eos_ids[0]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def response_positions(self, new_tokens: int) -> int:
        """How many positions of `context` a response of ``new_tokens`` takes: none where it is the encoder's alone."""
        return new_tokens if self.readable.kind == "causal" else 0

    def check_length(self, tokens: int, key: str) -> None:
        """Raise InputError where the model has no positions for a response of so many tokens."""
        limit = self.response_limit
        if limit is not None and tokens > limit:
            raise InputError(
                f"{key}: {tokens} tokens, and the model's decoder has positions for responses of {limit}. "
                f"Set {key} to {limit} or less."
            )

    def _demand_positions(self, prompt_mask: Tensor, lengths_N: Tensor) -> None:
        """Raise InputError where the model lacks positions for the prompts [P S], or for responses of these lengths."""
        self.check_length(int(lengths_N.max()), "sampling.max_new_tokens")
        tokens = prompt_mask.sum(-1).repeat_interleave(len(lengths_N) // len(prompt_mask))
        if self.readable.kind == "causal":
            tokens = tokens + lengths_N.to(tokens.device)
        most = int(tokens.max())
        if self.context is not None and most > self.context:
            raise InputError(
                f"{most} tokens of a prompt{' and its response' * (self.readable.kind == 'causal')}, and the model's "
                f"context has {self.context}. Set data.max_prompt_tokens or sampling.max_new_tokens lower."
            )

    def collate(self, prompts: list[Prompt]) -> tuple[Tensor, Tensor]:
        """Batch of prompts: ``prompt_ids, prompt_mask [P S]``, padded on this architecture's side.

        Raises InputError for a prompt without a token, which nothing could follow, and for one with ``skipped``.
        """
        empty = next((prompt.index for prompt in prompts if not prompt.ids), None)
        if empty is not None:
            raise InputError(
                f"the prompt of index {empty} has no tokens; remove it, or choose another tokenizer"
            )
        padded = next((prompt.index for prompt in prompts if self.skipped in prompt.ids), None)
        if padded is not None:
            raise InputError(f"the prompt of index {padded} has {no_position(self.skipped)}. Leave it out.")
        width = max(len(prompt.ids) for prompt in prompts)
        ids = torch.full((len(prompts), width), self.pad_id)
        mask = torch.zeros((len(prompts), width), dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            used = (
                slice(width - len(prompt.ids), width)
                if self.padding_side == "left"
                else slice(len(prompt.ids))
            )
            ids[row, used] = torch.tensor(prompt.ids)
            mask[row, used] = True
        return ids.to(self.device), mask.to(self.device)

    def decode(self, response_ids: Tensor, mask: Tensor) -> list[str]:
        """Texts of response tokens, without special tokens."""
        rows = [row[kept].tolist() for row, kept in zip(response_ids, mask, strict=True)]
        return self.tokenizer.batch_decode(rows, skip_special_tokens=True)

    def encode(
        self,
        responses: Sequence[str],
        prompts: Sequence[Prompt] | None = None,
        finished: Sequence[bool] | None = None,
    ) -> list[list[int]]:
        """Token ids of N response texts, each ended as the model ends its own; a special token in a text is text.

        prompts   N: after a conversation the end is the token that the chat template writes; after a text, and for
                  None, the tokenizer's EOS.
        finished  N: False for a response that was cut off, which gets no end; None: all ended by themselves. One
                  without a token keeps its end: attention needs a query.
        """
        ends = [self.eos_ids[0]] * len(responses) if prompts is None else self._ends(prompts)
        ended = [True] * len(responses) if finished is None else finished
        rows = [text_ids(response, self.tokenizer, special=False) for response in responses]
        return [
            [*row, end] if whole or not row else row
            for row, end, whole in zip(rows, ends, ended, strict=True)
        ]

    def _ends(self, prompts: Sequence[Prompt]) -> list[int]:
        """The token that ends a response to each prompt."""
        turn = turn_end(self.tokenizer, self.eos_ids)
        # A rendered conversation has the token in it, whoever rendered it.
        return [
            turn
            if turn is not None and (turn in prompt.ids or not isinstance(prompt.row.get("prompt", ""), str))
            else self.eos_ids[0]
            for prompt in prompts
        ]

    def given(
        self,
        prompts: list[Prompt],
        responses: list[str],
        limit: int,
        finished: Sequence[bool] | None = None,
    ) -> Rollout:
        """A rollout of given response texts, K per prompt in order, each ended as of `encode`.

        A response of more than ``limit`` tokens is cut there and counts as unfinished. Raises InputError for one
        that is longer than the model's decoder.
        """
        k = len(responses) // len(prompts)
        rows = self.encode(responses, [prompt for prompt in prompts for _ in range(k)], finished)
        rollout = self.given_ids(prompts, [row[:limit] for row in rows], responses)
        if finished is not None:
            rollout.finished.logical_and_(torch.tensor(finished, device=self.device))
        return rollout

    def given_ids(
        self, prompts: list[Prompt], rows: Sequence[Sequence[int]], responses: list[str] | None = None
    ) -> Rollout:
        """A rollout of given response tokens, K per prompt in order, read exactly as they are.

        One whose last token ends no sequence (``eos_ids``) counts as unfinished. ``responses`` are their texts; None:
        what the tokens spell. Raises InputError for a response that is longer than the model's decoder.
        """
        self.check_length(max(map(len, rows)), "sampling.max_new_tokens")
        if any(self.skipped in row[:-1] for row in rows):
            raise InputError(f"a given response has {no_position(self.skipped)}. Leave it out.")
        response_ids = torch.full((len(rows), max(map(len, rows))), self.pad_id)
        mask = torch.zeros(response_ids.shape, dtype=torch.bool)
        for n, row in enumerate(rows):
            response_ids[n, : len(row)] = torch.tensor(row)
            mask[n, : len(row)] = True
        finished = torch.tensor([row[-1] in self.eos_ids for row in rows])
        prompt_ids, prompt_mask = self.collate(prompts)
        texts = self.decode(response_ids, mask) if responses is None else responses
        moved = (tensor.to(self.device) for tensor in (response_ids, mask, finished))
        return Rollout(prompts, prompt_ids, prompt_mask, *moved, responses=texts)


def _eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends a response: the tokenizer's, the model's, and the one that the chat template writes."""
    declared = model.generation_config.eos_token_id
    ids = declared if isinstance(declared, list) else [declared]
    ids = [tokenizer.eos_token_id, *ids]
    known = range(model.config.get_text_config(decoder=True).vocab_size)  # -1 is written for none
    ids = [token for token in (*ids, turn_end(tokenizer, ids)) if isinstance(token, int) and token in known]
    found = list(dict.fromkeys(ids))
    if not found:
        raise InputError(
            "the model and its tokenizer name no end-of-sequence token, so no response could ever end. "
            "Set eos_token in the tokenizer's files."
        )
    return found
