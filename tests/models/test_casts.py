"""Casts of frozen weights under autocast: kept while responses are written, with the same numbers."""

import torch

import tiny
from cagsr.models.casts import casts_kept
from cagsr.models.lora import with_lora


def cast_while_written(policy, kept):
    """How many weights were cast, and the responses."""
    prompts = tiny.prompts(policy)
    weights = {weight.data_ptr() for weight in policy.model.parameters()}

    class Counted(torch.utils._python_dispatch.TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, given=(), named=None):
            if function is torch.ops.aten._to_copy.default and given[0].data_ptr() in weights:
                self.count += given[0].dim() == 2
            return function(*given, **(named or {}))

    with torch.autocast("cpu", torch.bfloat16), Counted() as counted:
        if kept:
            with casts_kept(policy.model):
                rollout = policy.sample(prompts, tiny.SHORT, seed=3)
        else:
            rollout = policy.sample(prompts, tiny.SHORT, seed=3)
    return counted.count, rollout


def test_frozen_weights_are_cast_once_and_the_responses_are_the_same():
    policy = tiny.policy("llama")
    with_lora(policy, r=2, alpha=4, target_modules="all-linear")
    wanted = {name: weight.requires_grad for name, weight in policy.model.named_parameters()}
    (often, plain), (once, kept) = (cast_while_written(policy, kept) for kept in (False, True))
    # Seven projections in each of two layers and the head, and the two halves of an adapter on each projection.
    assert once == 2 * 7 + 1 + 2 * 7 * 2
    assert often == (2 * 7 + 1) * plain.response_ids.shape[1] + 2 * 7 * 2
    assert torch.equal(plain.response_ids, kept.response_ids)
    assert {name: weight.requires_grad for name, weight in policy.model.named_parameters()} == wanted


def test_without_autocast_nothing_is_asked_of_the_weights():
    policy = tiny.policy("llama").requires_grad_(False)
    with casts_kept(policy.model):
        assert not any(weight.requires_grad for weight in policy.model.parameters())


def test_a_step_keeps_them_while_it_samples_and_not_in_its_update():
    policy = tiny.policy("llama")
    with_lora(policy, r=2, alpha=4, target_modules="all-linear")
    step = tiny.make_step(policy)
    frozen = next(weight for weight in policy.model.parameters() if not weight.requires_grad)
    seen = []
    sample = policy.sample

    def watched(*given, **named):
        seen.append(frozen.requires_grad)
        return sample(*given, **named)

    policy.sample = watched
    with torch.autocast("cpu", torch.bfloat16):
        collected = step.collect(tiny.prompts(policy), seed=1)
    assert seen == [True]
    assert not frozen.requires_grad
    step.update(collected.batches)
    assert frozen.grad is None
