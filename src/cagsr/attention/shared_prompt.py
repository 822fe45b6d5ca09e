"""Forward pass in which a prompt is computed once for its K responses, in causal models and encoder-decoders.

Causal: the tokens of P prompts and of their N responses stand in one row without padding,

    [ prompt 1 | ... | prompt P | response 1 | ... | response N ]

so that embeddings, projections and feed-forward layers see each prompt token once. Only attention mixes tokens, and it
is split: prompts are causal over themselves; each response is causal over its prompt and itself. No [M M] mask exists.

Encoder-decoder: the encoder's states come once per prompt, so cross-attention has keys of P prompts and queries of N
responses; the queries of a group are folded into one row.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from cagsr.attention.blocks import attend, log_sum_exp
from cagsr.attention.call import AttentionCall
from cagsr.attention.reading import Reading
from cagsr.attention.rows import Rows, counted, fold

__all__ = ["SharedPrompt"]


class SharedPrompt:
    """Layout of P prompts and their N responses in one row of M tokens, and attention over it.

    prompt_mask, response_mask [P S], [N T] as of `types.Rollout`. The last token of a response predicts nothing of it
    and is left out.

    split       tokens of prompts, and of responses; M is their sum
    positions   [1 M]   of each token in its own sequence
    predicting  [R]     the tokens that predict one of a response: each prompt's last, and all of the responses
    place       [N T]   which of the R predicts token t of response n; 0 at padding

    Hand it to the model as ``shared_prompt=``, with ``position_ids=positions`` and ``attention_mask=mask``: the keyword
    reaches the attention function with the call itself, so that gradient checkpointing finds it again when it
    recomputes a layer.
    """

    def __init__(self, prompt_mask: Tensor, response_mask: Tensor):
        self.prompt_mask, self.read_mask = prompt_mask, response_mask[:, 1:]
        prompts, read, device = prompt_mask.sum(-1), self.read_mask.sum(-1), prompt_mask.device
        self.prompts = Rows(prompts, int(prompts.max()))
        self.responses = Rows(read, self.read_mask.shape[1])
        self.group_size = len(read) // len(prompts)
        self.split = (int(prompts.sum()), int(read.sum()))
        starts = prompts.repeat_interleave(self.group_size)
        self.positions = torch.cat([counted(prompts), counted(read, starts)])[None]
        self.longest = int(self.positions.max()) + 1
        # transformers hands a mask of four dimensions on as it is; this one is never looked at.
        self.mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
        written = torch.arange(self.split[1], device=device)
        self.predicting = torch.cat([prompts.cumsum(0) - 1, self.split[0] + written])
        self.place = torch.zeros(response_mask.shape, dtype=torch.long, device=device)
        self.place[:, 0] = torch.arange(len(prompts), device=device).repeat_interleave(self.group_size)
        self.place[:, 1:][self.read_mask] = len(prompts) + written
        self.asked = 0  # calls of `attend`: 0 after a pass of a model that does not hand keywords on
        self._biases: dict[tuple[int | None, torch.dtype], Biases] = {}

    def row(self, prompt_ids: Tensor, response_ids: Tensor) -> Tensor:
        """[1 M] the token ids of the row, of [P S] and [N T]."""
        return torch.cat([prompt_ids[self.prompt_mask], response_ids[:, :-1][self.read_mask]])[None]

    def biases(self, window: int | None, dtype: torch.dtype) -> "Biases":
        """The row's `Biases`, kept because layers share them.

        A window of w lets a token see itself and the w - 1 before it; None: all before it.
        """
        if window is not None and window >= self.longest:
            window = None
        if (window, dtype) not in self._biases:
            self._biases[window, dtype] = _biases(self, window, dtype)
        return self._biases[window, dtype]

    def attend(self, call: AttentionCall, reading: Reading | None) -> Tensor:
        """The attention output [1 M H D] of a call with ``query [1 H M D]``, ``key`` and ``value [1 G M D]``.

        A ``reading`` gets the attention [N T S] of the T queries that predict each response: the prompt's last token
        and the response's own, whose last token predicts nothing and is not there.
        """
        self.asked += 1
        prompts, responses = self.prompts, self.responses
        biases = self.biases(call.window, call.query.dtype)
        flat = [each[0].transpose(0, 1).split(self.split) for each in (call.query, call.key, call.value)]
        query_P, key_P, value_P = (prompts.pad(each[0]).transpose(1, 2) for each in flat)
        of_prompts = replace(call, query=query_P, key=key_P, value=value_P, mask=biases.prompts)
        output_P = _sdpa(of_prompts)
        query_N, own_key, own_value = (responses.pad(each[1]).transpose(1, 2) for each in flat)
        empty = own_value.new_zeros(*query_N.shape[:3], own_value.shape[-1])
        output_N, lse_N = empty.transpose(1, 2), empty.sum(-1, dtype=torch.float32)
        if self.split[1]:  # the kernel cannot be asked nothing
            key_N, value_N = (
                torch.cat([of_prompt.repeat_interleave(self.group_size, 0), own], 2)
                for of_prompt, own in ((key_P, own_key), (value_P, own_value))
            )
            of_responses = replace(call, query=query_N, key=key_N, value=value_N, mask=biases.responses)
            if reading is None:
                output_N = _sdpa(of_responses)
            else:
                output_N, lse_N = attend(replace(of_responses, is_causal=False), slice(None))
        if reading is not None:
            self._read(reading, of_prompts, biases, query_N, lse_N)
        return torch.cat([prompts.flat(output_P), responses.flat(output_N)])[None]

    def _read(
        self, reading: Reading, of_prompts: AttentionCall, biases: "Biases", query_N: Tensor, lse_N: Tensor
    ) -> None:
        """Add the responses' attention, their rows folded so that a prompt's keys are read once for all K."""
        query_P, key_P, k = of_prompts.query, of_prompts.key, self.group_size
        count, width = len(key_P), key_P.shape[2]
        ends = self.prompts.lengths - 1
        last_P = query_P[torch.arange(count, device=query_P.device), :, ends][:, :, None]
        lse_P = log_sum_exp(last_P, key_P, biases.last, of_prompts.scaling)
        predicting = torch.cat([last_P.repeat_interleave(k, 0), query_N], 2)
        lse = torch.cat([lse_P.repeat_interleave(k, 0), lse_N], 2)
        # Without a window every response sees all of its prompt, as the prompt's last token does.
        bias = biases.last
        if biases.prompts is not None:
            of_last = bias.expand(count, -1, -1, -1).repeat_interleave(k, 0)
            of_responses = biases.responses[..., :width].float().expand(count * k, -1, -1, -1)
            bias = fold(torch.cat([of_last, of_responses], 2), k)
        reading.add(replace(of_prompts, query=fold(predicting, k), mask=bias, responses=k), fold(lse, k))

    def on_columns(self, attention_NTS: Tensor) -> Tensor:
        """A reading's columns, moved to where ``prompt_mask`` has each prompt's tokens; 0 elsewhere."""
        found_PSKT = attention_NTS.unflatten(0, (len(self.prompt_mask), -1)).movedim(-1, 1)
        placed = found_PSKT.new_zeros(*self.prompt_mask.shape, *found_PSKT.shape[2:])
        placed[self.prompt_mask] = found_PSKT[self.prompts.mask]
        return placed.movedim(1, -1).flatten(0, 1)

    def off_columns(self, pieces_PJS: Tensor) -> Tensor:
        """The inverse of `on_columns`, of prompts' pieces: moved to a reading's columns."""
        found_PSJ = pieces_PJS.new_zeros(*self.prompts.mask.shape, pieces_PJS.shape[1])
        found_PSJ[self.prompts.mask] = pieces_PJS.transpose(1, 2)[self.prompt_mask]
        return found_PSJ.transpose(1, 2)


class Biases(NamedTuple):
    """Additive biases of a row of prompts and responses, 0 or -inf.

    prompts    [1 1 S S], or None: causal and nothing else
    responses  [1|N 1 T S+T]  of what is read of a response, over its prompt and itself
    last       [1|P 1 1 S]    of a prompt's last token over its prompt, float32
    """

    prompts: Tensor | None
    responses: Tensor
    last: Tensor


def _biases(shared: SharedPrompt, window: int | None, dtype: torch.dtype) -> Biases:
    lengths, device = shared.prompts.lengths, shared.mask.device
    width, written = shared.prompts.mask.shape[1], shared.responses.mask.shape[1]
    if shared.prompts.even:
        lengths = lengths[:1]
    far = window or shared.longest + 1
    column_S, column_T = torch.arange(width, device=device), torch.arange(written, device=device)
    within_TT = column_T[:, None] - column_T
    # How far back a prompt's token lies from its last one, and from each token of a response.
    before_P1S = (lengths[:, None] - 1 - column_S)[:, None]
    before_PTS = before_P1S + 1 + column_T[:, None]
    is_prompt_P1S = before_P1S >= 0
    own_PTT = ((within_TT >= 0) & (within_TT < far)).expand(len(lengths), -1, -1)
    seen = torch.cat([is_prompt_P1S & (before_PTS < far), own_PTT], -1)[:, None]
    if len(seen) > 1:
        seen = seen.repeat_interleave(shared.group_size, 0)
    of_prompts = None
    if window is not None:
        within_SS = column_S[:, None] - column_S
        of_prompts = _additive((within_SS >= 0) & (within_SS < far), dtype)[None, None]
    return Biases(
        of_prompts,
        _additive(seen, dtype),
        _additive(is_prompt_P1S & (before_P1S < far), torch.float32)[:, None],
    )


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)


def _sdpa(call: AttentionCall) -> Tensor:
    """[B Q H D]; causal without a mask. The CPU's kernel shares keys among heads, with a mask too."""
    query, key, value = call.query, call.key, call.value
    if query.device.type != "cpu":
        output, _ = sdpa_attention_forward(
            call.module,
            query,
            key,
            value,
            call.mask,
            dropout=call.dropout,
            scaling=call.scaling,
            is_causal=True,
        )
        return output
    output = F.scaled_dot_product_attention(
        query,
        key,
        value,
        call.mask,
        call.dropout,
        call.mask is None,
        scale=call.scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.transpose(1, 2)
