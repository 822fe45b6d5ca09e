"""Key-value cache for decoding in which a prompt is kept once, and read once, for all its responses.

Each step is one row of n tokens, the last one of every response that is still written. Attention is split as in
`shared_prompt`: scores over the prompt, for all responses of a group at a time, and scores over the response itself,
under one softmax. The row over the prompt is what a reading of attention asks for, so that it costs nothing here.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cagsr.attention.call import AttentionCall
from cagsr.attention.reading import Reading
from cagsr.attention.rows import Rows, counted

__all__ = ["SharedCache"]

BLOCK = 16
"""How many tokens of a response the cache has room for at first; the room is doubled when it is used up."""


class Kept(NamedTuple):
    """Keys and values of one attention module: of the prompts [P G S D], and of the rows [n G room D].

    Keys in float32: scores of a short float type would be rounded before the softmax, as no kernel rounds them.
    """

    prompt_key: Tensor
    prompt_value: Tensor
    own_key: Tensor
    own_value: Tensor


class SharedCache:
    """Key-value cache of P prompts and of their N = P * K responses so far.

    Handed to the model as ``shared_prompt=`` with `mask` and `positions`: first with the row of all prompts' tokens
    (`ids`), then with rows of one token for each response of ``rows``.
    """

    def __init__(self, prompt_mask: Tensor, responses: int):
        self.prompt_mask, self.group_size = prompt_mask, responses
        lengths, device = prompt_mask.sum(-1), prompt_mask.device
        self.prompts = Rows(lengths, int(lengths.max()))
        self.mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
        self.rows = torch.arange(len(lengths) * responses, device=device)
        self.written = 0  # tokens of each response that are in the cache
        self.ends = lengths.cumsum(0) - 1
        self.kept: dict[nn.Module, Kept] = {}
        self._biases: dict[int | None, tuple[tuple[int, int], Tensor | None]] = {}

    @property
    def positions(self) -> Tensor:
        """[1 m] the position of each token of the next row."""
        if not self.kept:
            return counted(self.prompts.lengths)[None]
        return (self.prompts.lengths[self.rows // self.group_size] + self.written)[None]

    def ids(self, prompt_ids: Tensor) -> Tensor:
        """[1 m] the token ids of all prompts in one row, of [P S]."""
        return prompt_ids[self.prompt_mask][None]

    def keep(self, rows: Tensor) -> None:
        """Drop all rows of the batch but these."""
        self.rows = self.rows[rows]
        for module, kept in self.kept.items():
            own = (kept.own_key[rows], kept.own_value[rows])
            self.kept[module] = Kept(kept.prompt_key, kept.prompt_value, *own)

    def attend(self, call: AttentionCall, reading: Reading | None) -> Tensor:
        """The attention output [1 m H D] of a call with ``query [1 H m D]``, ``key`` and ``value [1 G m D]``.

        No gradient and no dropout: a model that decodes is in eval mode. A ``reading`` gets the row [n 1 S] of the
        query that predicts each response's next token.
        """
        if call.module not in self.kept:
            output, on_prompt = self._begin(call, reading is not None)
        else:
            output, on_prompt = self._advance(call)
        if reading is not None and on_prompt is not None:
            reading.add_row(call.module, on_prompt)
        return output[None]

    def on_columns(self, attention_nS: Tensor) -> Tensor:
        """A reading's columns, moved to where ``prompt_mask`` has each prompt's tokens; 0 elsewhere."""
        of = self.rows // self.group_size
        placed = attention_nS.new_zeros(len(of), self.prompt_mask.shape[1])
        placed[self.prompt_mask[of]] = attention_nS[self.prompts.mask[of]]
        return placed

    def _begin(self, call: AttentionCall, reads: bool) -> tuple[Tensor, Tensor | None]:
        """The output of the prompts [m H D], and, asked for it, the weights [N H S] of their last tokens."""
        query, key, value = _flat(call)
        query_P, key_P, value_P = (self.prompts.pad(each).transpose(1, 2) for each in (query, key, value))
        of_prompts = (_exact(key_P).contiguous(), value_P.contiguous())
        room = (each.new_zeros(len(self.rows), each.shape[1], BLOCK, each.shape[3]) for each in of_prompts)
        kept = self.kept[call.module] = Kept(*of_prompts, *room)
        bias = None
        if call.window is not None and call.window < key_P.shape[2]:
            column = torch.arange(key_P.shape[2], device=key.device)
            back = column[:, None] - column
            bias = (back >= 0) & (back < call.window)
        grouped = query.shape[1] != key.shape[1]
        output = F.scaled_dot_product_attention(
            query_P, key_P, value_P, bias, is_causal=bias is None, scale=call.scaling, enable_gqa=grouped
        )
        flat = self.prompts.flat(output.transpose(1, 2))
        if not reads:
            return flat, None
        last = query_P[torch.arange(len(query_P), device=query.device), :, self.prompts.lengths - 1]
        last = _exact(last.repeat_interleave(self.group_size, 0)) * call.scaling
        placed = self._of_groups(last, key_P.shape[1])
        scores = self._of_rows(placed @ kept.prompt_key.transpose(2, 3), last.shape[1])
        bias = self._bias_over(call.window, 0)
        return flat, (scores if bias is None else scores + bias).softmax(-1)

    def with_room(self, module: nn.Module) -> Kept:
        """What is kept of a module, with room for one more token of each response."""
        kept = self.kept[module]
        if self.written == kept.own_key.shape[2]:
            longer = [F.pad(each, (0, 0, 0, self.written)) for each in (kept.own_key, kept.own_value)]
            kept = self.kept[module] = Kept(kept.prompt_key, kept.prompt_value, *longer)
        return kept

    def _advance(self, call: AttentionCall) -> tuple[Tensor, Tensor]:
        """The output [n H D] of one more token a row, and the weights [n H S] that it gave to the prompt."""
        query, key, value = _flat(call)
        kept, (rows, heads, width) = self.with_room(call.module), query.shape
        kept.own_key[:, :, self.written] = _exact(key)
        kept.own_value[:, :, self.written] = value
        groups = kept.prompt_key.shape[1]
        own = slice(0, self.written + 1)
        query = _exact(query) * call.scaling
        over_prompt = self._of_rows(self._of_groups(query, groups) @ kept.prompt_key.transpose(2, 3), heads)
        over_own = query.view(rows, groups, -1, width) @ kept.own_key[:, :, own].transpose(2, 3)
        scores = torch.cat([over_prompt, over_own.flatten(1, 2)], -1)
        bias = self._bias_over(call.window, self.written + 1)
        weights = (scores if bias is None else scores + bias).softmax(-1).to(value.dtype)
        on_prompt, on_own = weights.split([over_prompt.shape[-1], self.written + 1], -1)
        output = self._of_rows(self._of_groups(on_prompt, groups) @ kept.prompt_value, heads)
        on_own = on_own.reshape(rows, groups, heads // groups, -1)
        return output + (on_own @ kept.own_value[:, :, own]).flatten(1, 2), on_prompt

    def _of_groups(self, of_rows: Tensor, groups: int) -> Tensor:
        """[n H X] -> [P G K*H/G X]: a place for each candidate of a prompt, zeros for those that have left."""
        count = len(self.prompts.lengths) * self.group_size
        if len(of_rows) < count:
            of_rows = of_rows.new_zeros(count, *of_rows.shape[1:]).index_copy_(0, self.rows, of_rows)
        placed = of_rows.view(-1, self.group_size, groups, of_rows.shape[1] // groups, of_rows.shape[2])
        return placed.transpose(1, 2).flatten(2, 3)

    def _of_rows(self, of_groups: Tensor, heads: int) -> Tensor:
        """[P G K*H/G X] -> [n H X]."""
        placed = of_groups.unflatten(2, (self.group_size, -1)).transpose(1, 2)
        of_rows = placed.reshape(-1, heads, of_groups.shape[-1])
        return of_rows if len(of_rows) == len(self.rows) else of_rows[self.rows]

    def _bias_over(self, window: int | None, own: int) -> Tensor | None:
        """Additive bias [n 1 S+own], 0 or -inf, of token number ``own`` of each response, which sees itself too.

        ``own`` is 0 for the prompt's last token. None: nothing is hidden. The layers of a step share it.
        """
        step = (own, len(self.rows))
        if self._biases.get(window, ((), None))[0] != step:
            self._biases[window] = (step, self._make_bias(window, own))
        return self._biases[window][1]

    def _make_bias(self, window: int | None, own: int) -> Tensor | None:
        width, device = self.prompts.mask.shape[1], self.rows.device
        far = width + own if window is None else window
        if self.prompts.even and far >= width + own:
            return None
        of = self.rows // self.group_size
        position = self.prompts.lengths[of, None] + own - 1
        near = position - torch.arange(width, device=device) < far
        own_near = (own - 1 - torch.arange(own, device=device) < far).expand(len(of), -1)
        seen = torch.cat([self.prompts.mask[of] & near, own_near], -1)
        return torch.zeros(seen.shape, device=device).masked_fill_(~seen, -torch.inf)[:, None]


def _flat(call: AttentionCall) -> tuple[Tensor, ...]:
    """Query [m H D], key and value [m G D] of the one row that is computed."""
    return tuple(each[0].transpose(0, 1) for each in (call.query, call.key, call.value))


def _exact(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
