"""`WritingCopy`, the policy's weights in bfloat16 with the adapter merged: it writes the responses to train on, faster.

A token is written by reading all weights once, so that half the bytes take about half the time, and a merged adapter
takes no products of its own. The copy keeps its own log-probabilities of what it draws, by which the loss is corrected
for the rounding (`training.importance.importance_weight`).
"""

import copy
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from cagsr.config.schema import Sampling
from cagsr.errors import UnsupportedModelError
from cagsr.models.lora import is_adapted
from cagsr.models.merging import adapters, merged_weight
from cagsr.models.plain_pass import given_tokens
from cagsr.models.policy import Policy
from cagsr.models.token_logprobs import token_logprobs
from cagsr.types import Prompt, Rollout

__all__ = ["WritingCopy"]

COARSE = 2e-2
"""Mean difference of log-probabilities that rounding may make, as a share of the largest; SmolLM2's is .003."""


class WritingCopy:
    """A `models.sampling.Sampler` whose weights are the policy's, rounded to ``dtype`` when a rollout begins.

    Raises UnsupportedModelError for a model that says something else when it is rounded, or whose adapter cannot be
    merged.
    """

    held_to_policy: bool = False

    def __init__(self, policy: Policy, dtype: torch.dtype = torch.bfloat16):
        self._policy, self._dtype = policy, dtype
        self._copy, self._weights = _copied(policy, dtype)
        self._refresh(everything=True)
        self._check()

    def sample(self, prompts: list[Prompt], sampling: Sampling, seed: int = 0) -> Rollout:
        """`Policy.sample` by the rounded weights, with their log-probabilities of the drawn tokens.

        These are of the whole distribution at the policy's temperature, as the policy's own are: what top-p and top-k
        leave out is corrected nowhere.
        """
        # Autocast would round an adapter's product, and the copy has its type already.
        with torch.autocast(self._policy.device.type, enabled=False):
            self._refresh()
            return _scored(self._copy, prompts, sampling, seed)

    @torch.no_grad()
    def _refresh(self, everything: bool = False) -> None:
        for weight, rounded, adapter in self._weights:
            if everything or adapter is not None or weight.requires_grad:
                rounded.copy_(merged_weight(weight, adapter))

    @torch.no_grad()
    def _check(self) -> None:
        rollout = given_tokens(self._policy, (11, 7), (13, 5, 3, 11))
        own = self._policy.logprobs(rollout)
        difference = (self._copy.logprobs(rollout) - own)[rollout.response_mask].abs().mean()
        allowed = COARSE * own.abs().max()
        if not difference <= allowed:
            raise UnsupportedModelError(
                f"sampling.dtype: rounded to bfloat16 the model's log-probabilities move by {difference:.2g} nats a "
                f"token (at most {allowed:.2g}). Leave sampling.dtype out."
            )


def _scored(policy: Policy, prompts: list[Prompt], sampling: Sampling, seed: int) -> Rollout:
    """`Policy.sample`, with `Policy.logprobs` of the drawn tokens as ``sampled_logprobs``."""
    found: list[tuple[Tensor, Tensor]] = []  # of each step, rows and log-probabilities

    def written(t: int, rows: Tensor, logits: Tensor, tokens: Tensor) -> None:
        each = torch.arange(len(rows), device=rows.device)
        found.append((rows, token_logprobs(logits, each, tokens, policy.temperature)))

    rollout = policy.sample(prompts, sampling, seed, written)
    if not found:  # transformers' own loop wrote
        return replace(rollout, sampled_logprobs=policy.logprobs(rollout))
    sampled = torch.zeros(rollout.response_ids.shape, device=rollout.response_ids.device)
    for t, (rows, logprobs) in enumerate(found):
        sampled[rows, t] = logprobs
    return replace(rollout, sampled_logprobs=sampled.masked_fill_(~rollout.response_mask, 0.0))


Weights = list[tuple[Tensor, Tensor, Any]]
"""Each weight of a policy, its copy, and the module whose adapter is added to it, or None."""


def _copied(policy: Policy, dtype: torch.dtype) -> tuple[Policy, Weights]:
    """A policy without adapter whose weights have ``dtype`` and are yet to be filled, and the pairs to fill it by."""
    of_adapter = {id(weight) for name, weight in policy.model.named_parameters() if ".lora_" in name}
    # Everything else is copied; an adapter's weights are not needed, the network's are made in the other type.
    known: dict[int, Any] = {id(policy.tokenizer): policy.tokenizer}
    pairs = []
    adapted = adapters(policy.model, "sampling.dtype")
    for weight in policy.model.parameters():
        if id(weight) in of_adapter:
            known[id(weight)] = weight
            continue
        kind = dtype if weight.is_floating_point() else weight.dtype
        known[id(weight)] = nn.Parameter(torch.empty_like(weight, dtype=kind), requires_grad=False)
        pairs.append((weight, known[id(weight)], adapted.get(id(weight))))
    copied = copy.deepcopy(policy, known)
    if is_adapted(copied.model):
        copied.model = _without_adapters(cast(Any, copied.model).get_base_model())
    return copied.eval(), pairs


def _without_adapters(model: Any) -> Any:
    for name, module in list(model.named_modules()):
        if hasattr(module, "get_delta_weight"):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, module.get_base_layer())
    return model
