"""The plain model, which a policy is compared with: the definition of what it ought to compute.

Prompt and response stand in a row without padding, mask, cache or position ids; attention is transformers' eager one.
"""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cagsr.attention.capture import capture
from cagsr.attention.inspection import token_ids
from cagsr.attention.reading import ATTENTION
from cagsr.models.policy import Policy
from cagsr.types import Prompt, Rollout

__all__ = ["base_model", "given_tokens", "plain_attention", "plain_logprobs"]


def given_tokens(policy: Policy, prompts: Sequence[int], responses: Sequence[int]) -> Rollout:
    """A rollout of tokens that the model embeds, with prompts and responses of these lengths."""
    numbers = iter(token_ids(base_model(policy.model), sum(prompts) + sum(responses)).tolist())
    rows = [[next(numbers) for _ in range(length)] for length in (*prompts, *responses)]
    asked = [
        Prompt(text="", ids=tuple(ids), offsets=(), turns=(), index=index)
        for index, ids in enumerate(rows[: len(prompts)])
    ]
    return policy.given_ids(asked, rows[len(prompts) :], [""] * len(responses))


def plain_logprobs(policy: Policy, rollout: Rollout) -> list[Tensor]:
    """[T V] log-probabilities of every response by transformers' eager attention."""
    base, found = base_model(policy.model), {}
    base.set_attn_implementation("eager")
    try:
        for rows, inputs in _alone(policy, rollout):
            logits = cast(Any, policy.model)(**inputs, use_cache=False).logits.float()
            for row, of_row in zip(rows, logits, strict=True):
                found[row] = of_row[_predicting(rollout, row, inputs)].log_softmax(-1)
    finally:
        base.set_attn_implementation(ATTENTION)
    return [found[row] for row in sorted(found)]


def plain_attention(policy: Policy, rollout: Rollout) -> tuple[list[Tensor], list[Tensor]]:
    """[T S] attention of every response to its prompt, read without padding, as `attention.inspection` has proved.

    Also the [T V] log-probabilities of that pass.
    """
    found = {}
    for rows, inputs in _alone(policy, rollout):
        with capture(policy.readable) as reading:
            logits = cast(Any, policy.model)(**inputs, use_cache=False).logits.float()
        for row, attention, of_row in zip(rows, reading.attention, logits, strict=True):
            prompt, steps = (
                len(rollout.prompts[row // rollout.group_size].ids),
                _predicting(rollout, row, inputs),
            )
            found[row] = attention[steps, :prompt], of_row[steps].log_softmax(-1)
    attention, logprobs = zip(*(found[row] for row in sorted(found)), strict=True)
    return list(attention), list(logprobs)


def _alone(policy: Policy, rollout: Rollout) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Responses that are alike in length, by their rows, as the plain model's inputs.

    Rows of one length need no padding: they are computed at once, because a pass of a large model on few tokens costs
    as much as it takes to read the weights.
    """
    alike: dict[tuple[int, ...], list[int]] = {}
    begun = policy.begun(1).get("decoder_input_ids")
    for row, written in enumerate(rollout.lengths.tolist()):
        prompt = len(rollout.prompts[row // rollout.group_size].ids)
        alike.setdefault((prompt + written,) if begun is None else (prompt, written), []).append(row)
    for rows in alike.values():
        prompts = [
            torch.tensor(rollout.prompts[row // rollout.group_size].ids, device=policy.device) for row in rows
        ]
        responses = [rollout.response_ids[row][rollout.response_mask[row]] for row in rows]
        if begun is None:
            yield (
                rows,
                {
                    "input_ids": torch.stack(
                        [torch.cat(each) for each in zip(prompts, responses, strict=True)]
                    )
                },
            )
        else:
            shown = torch.stack([torch.cat([begun[0], response[:-1]]) for response in responses])
            yield rows, {"input_ids": torch.stack(prompts), "decoder_input_ids": shown}


def _predicting(rollout: Rollout, row: int, inputs: dict[str, Tensor]) -> slice:
    """The positions of a plain pass that predict the tokens of a response."""
    shown = inputs.get("decoder_input_ids")
    end = inputs["input_ids"].shape[1] - 1 if shown is None else shown.shape[1]
    return slice(end - int(rollout.lengths[row]), end)


def base_model(model: Any) -> PreTrainedModel:
    return getattr(model, "get_base_model", lambda: model)()
