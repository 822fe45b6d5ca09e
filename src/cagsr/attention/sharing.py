"""Whether a model's responses can share the computation of their prompt: tried once when a model is loaded."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from .capture import recorded_calls
from .shared_prompt import SharedPrompt
from .support import evaluating, token_ids

__all__ = ["Sharing", "inspect_sharing"]

# Distinct primes. The second prompt and some of the responses are padded, one response is a single token.
PROMPTS, RESPONSES, K = (7, 5), (5, 3, 1, 2, 4, 5), 3


@dataclass(frozen=True)
class Sharing:
    """reason: why not; None where it is possible.

    longest: a causal model's prompt and response may take so many tokens together; None: any number. Beyond it the
    model looks back through a window that its attention modules keep to themselves.
    """

    reason: str | None = None
    longest: int | None = None

    @property
    def possible(self) -> bool:
        return self.reason is None

    def __str__(self) -> str:
        if self.reason is not None:
            return f"each response computes its prompt again ({self.reason})"
        limit = "" if self.longest is None else f", up to {self.longest} tokens"
        return f"a prompt is computed once for all its responses{limit}"


@torch.no_grad()
def inspect_sharing(model: PreTrainedModel) -> Sharing:
    """Run the model both ways on two prompts with three ragged responses each, and compare.

    A model that shares nothing is slower and not wrong, so that whatever goes wrong here is a reason and no error.
    """
    try:
        with evaluating(model), recorded_calls() as calls:
            compare = _encoder_decoder if model.config.is_encoder_decoder else _causal
            difference, scale = compare(model)
    except Exception as error:
        first, *_ = str(error).splitlines() or [""]
        return Sharing(f"{type(error).__name__}: {first}"[:200])
    tolerance = 1e-3 if model.dtype == torch.float32 else 5e-2
    if not difference <= tolerance * scale:
        return Sharing(
            f"its logits would differ by {difference:.1e}; something but attention mixes its tokens"
        )
    return Sharing(longest=_unknown_window(model, {call.window for call in calls}))


def _causal(model: PreTrainedModel) -> tuple[float, float]:
    prompt_ids, response_ids, prompt_mask, response_mask = _ragged(model)
    shared = SharedPrompt(prompt_mask, response_mask)
    logits = cast(Any, model)(
        input_ids=shared.row(prompt_ids, response_ids),
        attention_mask=shared.mask,
        position_ids=shared.positions,
        shared_prompt=shared,
        use_cache=False,
    ).logits[0, shared.predicting]
    expected = []
    for row, length in enumerate(RESPONSES):
        prompt, start = prompt_ids[row // K][prompt_mask[row // K]], PROMPTS[row // K] - 1
        alone = torch.cat([prompt, response_ids[row, :length]])[None]
        expected.append(cast(Any, model)(input_ids=alone, use_cache=False).logits[0, start : start + length])
    return _compared(logits[shared.place[response_mask]], torch.cat(expected))


def _encoder_decoder(model: PreTrainedModel) -> tuple[float, float]:
    prompt_ids, response_ids, prompt_mask, _ = _ragged(model)
    encode = cast(Any, model.get_encoder())
    encoded = encode(input_ids=prompt_ids, attention_mask=prompt_mask.long()).last_hidden_state
    logits = [
        cast(Any, model)(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=mask,
            decoder_input_ids=response_ids,
            use_cache=False,
        ).logits
        for states, mask in (
            (encoded, prompt_mask[:, None, None]),
            (encoded.repeat_interleave(K, 0), prompt_mask.repeat_interleave(K, 0).long()),
        )
    ]
    return _compared(*logits)


def _compared(found: Tensor, expected: Tensor) -> tuple[float, float]:
    return (found - expected).abs().max().item(), expected.abs().max().item()


def _ragged(model: PreTrainedModel) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Prompts and responses of the probe, and their masks, padded on the right."""
    in_prompts = max(PROMPTS) * len(PROMPTS)
    ids = token_ids(model, in_prompts + max(RESPONSES) * len(RESPONSES))
    masks = [
        torch.arange(max(lengths), device=ids.device) < torch.tensor(lengths, device=ids.device)[:, None]
        for lengths in (PROMPTS, RESPONSES)
    ]
    return ids[:in_prompts].view(masks[0].shape), ids[in_prompts:].view(masks[1].shape), masks[0], masks[1]


def _unknown_window(model: PreTrainedModel, told: set[int | None]) -> int | None:
    """The narrowest window of the config that no attention module tells its attention function about."""
    if model.config.is_encoder_decoder:
        return None
    config = model.config.get_text_config(decoder=True)
    windows = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return min((window for window in windows if window and window not in told), default=None)
