"""ReadWhileWriting: what an observation holds, read from a decoder step by step while it writes responses."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cagsr.attention.naive import naive_looks, piece_weights
from cagsr.models.decoding import Decoder
from cagsr.models.predictions import observed, pieces_read
from cagsr.models.token_logprobs import Facts, facts
from cagsr.types import Observation, Prompt, Rollout, Wanted

__all__ = ["ReadWhileWriting"]


class ReadWhileWriting:
    """`decoding.Written` of N responses of at most T tokens (``shape``), from a decoder that reads attention."""

    def __init__(
        self,
        decoder: Decoder,
        prompts: Sequence[Prompt],
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        shape: tuple[int, int],
        temperature: float,
        wanted: Wanted,
    ):
        self.decoder, self.prompts, self.prompt_mask = decoder, prompts, prompt_mask
        self.shape, self.temperature, self.wanted = shape, temperature, wanted
        others = prompt_ids if wanted.prompt_logprobs else prompt_ids[:, :0]
        self.others = others.repeat_interleave(shape[0] // len(prompt_ids), 0)
        pieces_PJS = pieces_read(self.prompts, self.prompt_mask, shape, wanted)
        self.weights_PJS = None if pieces_PJS is None else piece_weights(pieces_PJS)
        self.read: dict[str, Tensor] = {}  # by name `Facts` and what is read of the prompt, [N T ...]

    def __call__(self, t: int, rows: Tensor, logits: Tensor, tokens: Tensor) -> None:
        """Keep what step ``t`` tells of the ``rows`` [n] that still write."""
        each = torch.arange(len(rows), device=rows.device)
        of_step = facts(logits, each, tokens, self.others[rows], self.temperature)._asdict()
        if self.weights_PJS is not None:
            of_step["looks"] = self._looks(self.weights_PJS, rows)
        if self.weights_PJS is None or self.wanted.by_token:
            of_step["attention"] = self.decoder.attention
        for name, value in of_step.items():
            if name not in self.read:
                # Room for all steps at once: put together at the end, what they told would be held twice.
                self.read[name] = value.new_zeros(*self.shape, *value.shape[1:])
            self.read[name][rows, t] = value

    def _looks(self, weights_PJS: Tensor, rows: Tensor) -> Tensor:
        """[n J] of the last pass, whose rows are put back into their groups."""
        attention_NS = self.decoder.attention.new_zeros(self.shape[0], self.prompt_mask.shape[1])
        attention_NS[rows] = self.decoder.attention
        with torch.autocast(rows.device.type, enabled=False):
            looks_PKJ = naive_looks(attention_NS.unflatten(0, (len(self.prompts), -1)), weights_PJS)
        return looks_PKJ.flatten(0, 1)[rows]

    def observation(self, rollout: Rollout) -> Observation:
        """What was told of the responses that were written."""
        read = {name: whole[:, : rollout.response_ids.shape[1]] for name, whole in self.read.items()}
        told = Facts(*(read.pop(name) for name in Facts._fields))
        return observed(rollout, read, told)
