"""Probe of a loaded model: whether its responses can share the computation of their prompt."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from cagsr.attention.capture import recorded_calls
from cagsr.attention.inspection import evaluating, name_of, token_ids
from cagsr.attention.shared_prompt import SharedPrompt
from cagsr.errors import UnsupportedModelError, ran_out_of_memory

__all__ = ["Sharing", "can_keep", "inspect_sharing"]

# Distinct primes. The second prompt and some of the responses are padded, one response is a single token.
PROMPTS, RESPONSES, K = (7, 5), (5, 3, 1, 2, 4, 5), 3

LONGEST_PROBE = 1024
"""Longest attention window that is probed, by a prompt that reaches beyond it. Sharing stops at a longer one."""


@dataclass(frozen=True)
class Sharing:
    """Verdict of the probe.

    reason: why responses cannot share; None where they can.

    longest: a causal model's prompt and response may take so many tokens together; None: any number. Beyond it the
    model looks back through a window, or turns its positions, in a way that was not seen to agree.
    """

    reason: str | None = None
    longest: int | None = None

    @property
    def possible(self) -> bool:
        return self.reason is None

    def allows(self, tokens: int) -> bool:
        """Whether a prompt and response that take so many tokens together can share."""
        return self.possible and tokens <= (self.longest or tokens)

    def __str__(self) -> str:
        if self.reason is not None:
            return f"each response computes its prompt again ({self.reason})"
        limit = "" if self.longest is None else f", up to {self.longest} tokens"
        return f"a prompt is computed once for all its responses{limit}"


@torch.no_grad()
def inspect_sharing(model: PreTrainedModel) -> Sharing:
    """Compare a model's logits with and without sharing, on two prompts with three ragged responses each.

    A model that shares nothing is slower and not wrong, so that what goes wrong in the shared way is a reason and no
    error. Raises UnsupportedModelError where the plain way goes wrong too.
    """
    config = model.config.get_text_config(decoder=True)
    if getattr(config, "attn_temperature_tuning", False):
        return Sharing("it scales its queries by where they stand in the row")
    with evaluating(model), recorded_calls() as calls:
        ways = _encoder_decoder(model) if model.config.is_encoder_decoder else _causal(model, PROMPTS)
        reason = _difference(model, *ways)
        if reason is not None:
            return Sharing(reason)
        if model.config.is_encoder_decoder:
            return Sharing()
        told = {call.window for call in calls}
        limits = [*_untold_windows(config, told), *_turning_positions(config)]
        for window in (window for window in told if window is not None):
            if window > LONGEST_PROBE or _difference(model, *_causal(model, (window + 3, 5))) is not None:
                limits.append(window)
    return Sharing(longest=min(limits, default=None))


def can_keep(model: Any) -> bool:
    """Whether the model takes ``logits_to_keep``, and so computes only the logits that are asked for."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


Way = Callable[[], Tensor]


def _difference(model: PreTrainedModel, shared: Way, plain: Way, again: Way) -> str | None:
    """Why the logits with sharing are not those without, or None where they agree.

    Allowed is what the plain way differs by from itself in another batch, and a little more.
    """
    try:
        expected, repeated = plain(), again()
    except Exception as error:
        if ran_out_of_memory(error):
            raise
        raise UnsupportedModelError(
            f"{name_of(model)} does not compute logits of two prompts with three responses each: "
            f"{_first_line(error)}. Choose another model, or mend its code."
        ) from error
    try:
        found = shared()
    except Exception as error:
        if ran_out_of_memory(error):
            raise
        return _first_line(error)
    scale, noise = expected.abs().max(), (repeated - expected).abs().max()
    difference = (found - expected).abs().max()
    if difference.isnan():
        return "its logits would not be numbers"
    if difference > 1e-3 * scale + 4 * noise:
        return f"its logits would differ by {difference.item():.1e}; something but attention mixes its tokens"
    return None


def _first_line(error: Exception) -> str:
    first, *_ = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {first}"[:200]


def _causal(model: PreTrainedModel, prompts: Sequence[int]) -> tuple[Way, Way, Way]:
    prompt_ids, response_ids, prompt_mask, response_mask = _ragged(model, prompts)

    def shared() -> Tensor:
        row = SharedPrompt(prompt_mask, response_mask)
        keep = {"logits_to_keep": row.predicting} if can_keep(model) else {}
        logits = cast(Any, model)(
            input_ids=row.row(prompt_ids, response_ids),
            attention_mask=row.mask,
            position_ids=row.positions,
            shared_prompt=row,
            use_cache=False,
            **keep,
        ).logits[0]
        if not row.asked:
            raise ValueError("it does not hand keywords on to its attention")
        logits = logits if keep else logits[row.predicting]
        return logits[row.place[response_mask]]

    def alone(copies: int) -> Tensor:
        found = []
        for row, length in enumerate(RESPONSES):
            prompt, start = prompt_ids[row // K][prompt_mask[row // K]], prompts[row // K] - 1
            ids = torch.cat([prompt, response_ids[row, :length]])[None].repeat(copies, 1)
            found.append(cast(Any, model)(input_ids=ids, use_cache=False).logits[0, start : start + length])
        return torch.cat(found)

    return shared, lambda: alone(1), lambda: alone(3)


def _encoder_decoder(model: PreTrainedModel) -> tuple[Way, Way, Way]:
    prompt_ids, response_ids, prompt_mask, _ = _ragged(model, PROMPTS)

    def logits(repeats: int, mask: Tensor) -> Tensor:
        encode = cast(Any, model.get_encoder())
        encoded = encode(input_ids=prompt_ids, attention_mask=prompt_mask.long()).last_hidden_state
        return cast(Any, model)(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded.repeat_interleave(repeats, 0)),
            attention_mask=mask,
            decoder_input_ids=response_ids,
            use_cache=False,
        ).logits

    def each(rows: slice) -> Tensor:
        encode = cast(Any, model.get_encoder())
        ids, mask = (tensor.repeat_interleave(K, 0)[rows] for tensor in (prompt_ids, prompt_mask.long()))
        encoded = encode(input_ids=ids, attention_mask=mask).last_hidden_state
        return cast(Any, model)(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
            attention_mask=mask,
            decoder_input_ids=response_ids[rows],
            use_cache=False,
        ).logits

    of_each = prompt_mask.repeat_interleave(K, 0).long()
    one_by_one = [slice(row, row + 1) for row in range(len(RESPONSES))]
    return (
        lambda: logits(1, prompt_mask[:, None, None]),
        lambda: logits(K, of_each),
        lambda: torch.cat([each(row) for row in one_by_one]),
    )


def _ragged(model: PreTrainedModel, prompts: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Prompts and responses of the probe, and their masks, padded on the right."""
    in_prompts = max(prompts) * len(prompts)
    ids = token_ids(model, in_prompts + max(RESPONSES) * len(RESPONSES))
    masks = [
        torch.arange(max(lengths), device=ids.device) < torch.tensor(lengths, device=ids.device)[:, None]
        for lengths in (prompts, RESPONSES)
    ]
    return ids[:in_prompts].view(masks[0].shape), ids[in_prompts:].view(masks[1].shape), masks[0], masks[1]


def _untold_windows(config: PretrainedConfig, told: set[int | None]) -> list[int]:
    """Windows of the config that no attention module tells its attention function about."""
    windows = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return [window for window in windows if window and window not in told]


def _turning_positions(config: PretrainedConfig) -> list[int]:
    """Positions from which rotary frequencies depend on the longest sequence of a batch, and so on its other rows."""
    given = getattr(config, "rope_parameters", None) or {}
    kinds = [given] if "rope_type" in given else [each for each in given.values() if isinstance(each, dict)]
    original = getattr(config, "original_max_position_embeddings", None)
    return [
        kind.get("original_max_position_embeddings") or original or config.max_position_embeddings
        for kind in kinds
        if kind.get("rope_type") in ("dynamic", "longrope")
    ]
