"""Proof of a policy: its own ways of sampling, scoring and observing are compared with the plain model's eager pass.

What disagrees with it (`models.plain_pass`) is not used: responses share their prompt, or go with padded prompts of
their own, or prompt by prompt; a model that agrees in no way is refused.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from cagsr.attention.capture import recorded_calls
from cagsr.attention.inspection import evaluating, name_of
from cagsr.attention.sharing import Sharing, Tried
from cagsr.config.schema import Sampling
from cagsr.errors import CagsrError, UnsupportedModelError, ran_out_of_memory
from cagsr.models.generation_rules import GenerationRules
from cagsr.models.plain_pass import base_model, given_tokens, plain_attention, plain_logprobs
from cagsr.models.policy import Policy
from cagsr.models.predictions import Predictions
from cagsr.models.sampling import response_mask, uniforms

__all__ = ["named_windows", "prove", "prove_training", "shares_at_all"]

PROMPTS, RESPONSES = (5, 3), (3, 1, 5, 3)
"""Lengths of the first comparison: all but one are padded, and two and two rows are of one length (`plain_pass`)."""

WRITTEN = 3
"""Tokens of a response that is sampled, and of one at a limit."""

LONGEST_PROBE = 1024
"""Longest window that is tried, by a prompt that reaches beyond it. Sharing stops at a longer one."""

WINDOW = re.compile("window|chunk_size|radius|block_size|local_attention")
"""Names that configs give to lengths beyond which attention changes."""

WORK = 2e10
"""Tokens times parameters of a comparison at a limit; a longer one costs more than a few per cent of loading."""

FINE, COARSE = 5e-4, 2e-2
"""Allowed difference, as a share of the largest absolute log-probability: of float32, and of shorter types."""


def prove(policy: Policy) -> None:
    """Settle ``policy.sharing`` and ``policy.proof`` by comparing each way with the plain model.

    Compared are the base case, every window that the config names or attention is told of (a prompt just below and
    just above it), and a prompt that fills the context, if these are short.

    Raises UnsupportedModelError for a model that computes in none of the ways what it computes alone.
    """
    model = policy.model
    with torch.no_grad(), evaluating(model), _unruled(policy), recorded_calls() as calls:
        case = Case(policy, PROMPTS, RESPONSES)
        reason = None if shares_at_all(model) else "it scales its queries by where they stand in the row"
        if reason is None:
            reason = case.tried(Sharing()).problem
        told = {call.window for call in calls if call.window is not None}
        if reason is not None:
            _settle(case, [Sharing(reason), Sharing(reason, padded=False)])
        for limit in sorted(told | named_windows(model)):
            _prove_window(policy, limit)
        _prove_context(policy)


def prove_training(policy: Policy) -> None:
    """Raise UnsupportedModelError where a policy scores otherwise while it is trained than when it is evaluated."""
    model, rollout = policy.model, given_tokens(policy, PROMPTS, RESPONSES)
    with torch.no_grad(), evaluating(model), _checkpointing(model):
        before = policy.logprobs(rollout)
        policy.train()
        try:
            during = policy.logprobs(rollout)
        finally:
            policy.eval()
    difference = _largest(during, before)
    tried = Tried("training mode", sum(map(max, (PROMPTS, RESPONSES))), difference)
    if difference > _share(policy) * _scale(before):
        raise UnsupportedModelError(
            f"model: {name_of(base_model(model))} computes something random in training mode that no dropout rate "
            f"names: its log-probabilities move by {difference:.2g} nats, so an update would train another network "
            "than the one that was sampled from. Choose another model."
        )
    policy.proof += (tried,)


def _settle(case: "Case", ways: Sequence[Sharing]) -> None:
    """Take the first of the ways that agrees. Raises UnsupportedModelError where none does."""
    if case.chosen(ways) is not None:
        return
    problem = case.policy.proof[-1].problem
    again = max(map(_largest, plain_logprobs(case.policy, case.rollout), case.plain))
    if again > case.allowed:
        problem = f"the same pass twice differs by {again:.1e} nats, so it is random in evaluation mode too"
    raise UnsupportedModelError(
        f"model: {name_of(base_model(case.policy.model))} computes {case.tokens} tokens otherwise than alone in an "
        f"unpadded row by its eager attention: {problem}. Choose another model."
    )


def _prove_window(policy: Policy, window: int) -> None:
    """Try prompts on both sides of a window; sharing stops at one that does not agree or is too long to be tried.

    Where no way agrees beyond it (a model whose cache forgets what its mask lets it see), it is the model's context.
    """
    sharing, causal = policy.sharing, policy.readable.kind == "causal"
    if causal:
        limited = replace(sharing, longest=min(window, sharing.longest or window))
    else:
        limited = replace(
            sharing, reason=sharing.reason or f"it computes prompts of more than {window} tokens otherwise"
        )
    prompts = (window + 3, max(window - 2, 1))
    if policy.context is not None and prompts[0] + WRITTEN * causal > policy.context:
        return
    if not _is_short(policy, prompts[0]):
        policy.sharing = limited if causal else sharing
        policy.proof += (Tried("beyond a window", prompts[0], float("inf"), "so many tokens are not tried"),)
        return
    case = Case(policy, prompts, (WRITTEN, WRITTEN))
    if case.chosen([sharing, limited, replace(limited, padded=False)]) is None:
        policy.sharing, policy.context = sharing, window


def _prove_context(policy: Policy) -> None:
    """Try a prompt and a response that fill a short context, of either half."""
    context, limit = policy.context, policy.response_limit
    if context is None or not _is_short(policy, context):
        return
    written = WRITTEN if limit is None or not _is_short(policy, limit) else limit
    full = context - WRITTEN if policy.readable.kind == "causal" else context
    case = Case(policy, (full, 2), (written, 2))
    _settle(case, [policy.sharing, replace(policy.sharing, padded=False)])


@contextmanager
def _unruled(policy: Policy) -> Iterator[None]:
    """Context manager without the rules of the generation config, which the plain model's pass does not know."""
    rules = policy.rules
    policy.rules = GenerationRules(undrawn=rules.undrawn)
    try:
        yield
    finally:
        policy.rules = rules


class Case:
    """Prompts and responses of certain lengths, by the plain model and by a policy."""

    def __init__(self, policy: Policy, prompts: Sequence[int], responses: Sequence[int]):
        self.policy = policy
        self.rollout = given_tokens(policy, prompts, responses)
        self.tokens = max(prompts) + max(responses)
        try:
            self.plain = plain_logprobs(policy, self.rollout)
            self.attention, again = plain_attention(policy, self.rollout)
        except Exception as error:
            if ran_out_of_memory(error):
                raise
            raise UnsupportedModelError(
                f"model: {name_of(base_model(policy.model))} does not compute {self.tokens} tokens in an unpadded row: "
                f"{_first_line(error)}. Choose another model, or mend its code."
            ) from error
        self.scale = _scale(torch.cat(self.plain))
        # Kernels of short types differ by what they round.
        noise = 0.0 if _is_fine(policy) else max(map(_largest, again, self.plain))
        self.allowed = max(_share(policy) * self.scale, 3 * noise)

    def tried(self, sharing: Sharing) -> Tried:
        """Compare the policy's passes, made in this way; the policy keeps the way, and ``proof`` the outcome.

        A way that goes wrong is not used, and no error: the next one may not.
        """
        policy = self.policy
        policy.sharing = sharing
        shared = sharing.allows(self.tokens)
        way = "shared" if shared else "padded" if sharing.padded else "prompt by prompt"
        checks = {"scores": self._scored, "readings": self._observed, "samples": self._sampled}
        try:
            nats, of = max((check(), name) for name, check in checks.items())
            problem = None if nats <= self.allowed else f"its {of} would be off by {nats:.2g} nats"
        except Exception as error:
            if ran_out_of_memory(error):
                raise
            nats, problem = float("inf"), _first_line(error)
        tried = Tried(way, self.tokens, nats, problem)
        policy.proof += (tried,)
        return tried

    def chosen(self, ways: Sequence[Sharing]) -> Sharing | None:
        """The first of the ways that agrees, which the policy keeps; None where none does."""
        return next((sharing for sharing in ways if self.tried(sharing).problem is None), None)

    def _scored(self) -> float:
        return self._difference(self.policy.predict(self.rollout))

    def _observed(self) -> float:
        predictions, found = self.policy.read(self.rollout)
        mask, k = self.rollout.prompt_mask, self.rollout.group_size
        differences = [
            _largest(found["attention"][row, : len(plain), mask[row // k]], plain)
            for row, plain in enumerate(self.attention)
        ]
        # Of at most 1, as log-probabilities are of at most the scale.
        return max(self._difference(predictions), self.scale * max(differences))

    def _difference(self, predictions: Predictions) -> float:
        found = predictions.logits.float().log_softmax(-1)
        return max(
            _largest(found[predictions.place[row, : len(plain)]], plain)
            for row, plain in enumerate(self.plain)
        )

    def _sampled(self) -> float:
        """How far the distributions that tokens are drawn from are from the plain model's at the same tokens."""
        policy, prompts = self.policy, self.rollout.prompts
        sampling = Sampling(candidates=len(self.plain) // len(prompts), max_new_tokens=WRITTEN)
        rollout, seen = policy.sample_observed(prompts, sampling)
        if seen is None:
            return self._generated(sampling)
        return max(
            # These are at the policy's temperature, and of the tokens that were drawn.
            _largest(
                seen.logprobs[row, : len(plain)], _of(rollout.response_ids[row], plain / policy.temperature)
            )
            for row, plain in enumerate(plain_logprobs(policy, rollout))
        )

    def _generated(self, sampling: Sampling) -> float:
        policy, (ids, mask) = self.policy, (self.rollout.prompt_ids, self.rollout.prompt_mask)
        logits: list[Tensor] = []
        numbers = uniforms(self.rollout.prompts, sampling, 0)
        written = policy.generated(ids, mask, sampling, numbers, logits)
        lengths = response_mask(written, policy.eos_ids)[0].sum(-1).tolist()
        responses = [row[:length] for row, length in zip(written.tolist(), lengths, strict=True)]
        rollout = policy.given_ids(self.rollout.prompts, responses, [""] * len(written))
        rows = [row.float().log_softmax(-1) for batch in logits for row in batch]
        plain = plain_logprobs(policy, rollout)
        return max(_largest(row[: len(each)], each) for row, each in zip(rows, plain, strict=True))


def _of(tokens: Tensor, logprobs: Tensor) -> Tensor:
    """[T] log-probabilities of the first T ``tokens``, by [T V] that are normalised again."""
    return logprobs.log_softmax(-1).gather(-1, tokens[: len(logprobs), None])[:, 0]


@contextmanager
def _checkpointing(model: PreTrainedModel) -> Iterator[None]:
    """Context manager with gradient checkpointing, where the model has it."""
    begun = False
    if not model.is_activation_checkpointing:
        with suppress(ValueError):  # what a model raises that has none
            model.activation_checkpointing_enable({"use_reentrant": False})
            begun = True
    try:
        yield
    finally:
        if begun:
            model.activation_checkpointing_disable()


def shares_at_all(model: PreTrainedModel) -> bool:
    """Whether a query of a model does not depend on where its token stands in a row of several texts."""
    return not getattr(model.config.get_text_config(decoder=True), "attn_temperature_tuning", False)


def named_windows(model: PreTrainedModel) -> set[int]:
    """Windows, chunks and radii that configs name, of either half of a model."""
    configs = {id(part.config): part.config for part in model.modules() if isinstance(part, PreTrainedModel)}
    return {value for config in configs.values() for value in _windows(config)}


def _windows(config: PretrainedConfig) -> Iterator[int]:
    for name, value in config.get_text_config().to_dict().items():
        if WINDOW.search(name) and not re.search("pattern|layers", name):
            given = value if isinstance(value, list) else [value]
            yield from (each for each in given if isinstance(each, int) and each > 1)


def _is_short(policy: Policy, tokens: int) -> bool:
    work = tokens * sum(weight.numel() for weight in policy.model.parameters())
    return tokens <= LONGEST_PROBE + 3 and work <= WORK


def _is_fine(policy: Policy) -> bool:
    return policy.model.dtype in (torch.float32, torch.float64)


def _share(policy: Policy) -> float:
    return FINE if _is_fine(policy) else COARSE


def _scale(logprobs: Tensor) -> float:
    """The largest finite absolute log-probability, and at least 1."""
    return max(1.0, logprobs[logprobs.isfinite()].abs().max().item())


def _largest(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference; inf where one is no number, or only one of them is finite."""
    difference = (found.float() - expected.float()).abs().masked_fill(found == expected, 0.0)
    return difference.nan_to_num(torch.inf, torch.inf).max().item()


def _first_line(error: Exception) -> str:
    first, *_ = str(error).splitlines() or [""]
    return (first if isinstance(error, CagsrError) else f"{type(error).__name__}: {first}")[:200]
