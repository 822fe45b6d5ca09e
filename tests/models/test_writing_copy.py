"""A rounded copy of the policy that writes: what it writes, what it says of it, and what an update makes of that."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

import tiny
from cagsr.attention.sharing import Sharing
from cagsr.config.schema import AlgorithmSettings
from cagsr.errors import UnsupportedModelError
from cagsr.models import writing_copy
from cagsr.models.load_policy import load_policy
from cagsr.models.lora import with_lora
from cagsr.models.vllm_weights import WeightClient
from cagsr.models.writing_copy import WritingCopy
from cagsr.training.algorithms import Algorithm
from cagsr.training.step_metrics import measure


def adapted(name="llama"):
    """A policy whose adapter changes what it says."""
    policy = tiny.policy(name, extra_eos=20, temperature=0.7)
    torch.manual_seed(0)
    with_lora(policy, r=2, alpha=4, target_modules="all-linear")
    move_adapter(policy, seed=0)
    return policy


def move_adapter(policy, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in policy.model.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)


@pytest.mark.parametrize("name", ["llama", "qwen2", "t5", "bart"])
def test_a_copy_that_is_not_rounded_writes_what_the_adapted_policy_writes(name):
    policy = adapted(name)
    before = tiny.weights_of(policy)
    prompts, sampling = tiny.prompts(policy), tiny.sampling(temperature=0.7)
    rollout = WritingCopy(policy, torch.float32).sample(prompts, sampling, seed=3)
    assert rollout.response_ids.equal(policy.sample(prompts, sampling, seed=3).response_ids)
    torch.testing.assert_close(rollout.sampled_logprobs, policy.logprobs(rollout), rtol=0, atol=1e-4)
    assert len({*rollout.lengths.tolist()}) > 1
    assert not rollout.sampled_logprobs[~rollout.response_mask].any()
    after = tiny.weights_of(policy)
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_a_rounded_copy_has_the_merged_weights_in_bfloat16_and_tells_its_own_log_probabilities():
    policy = adapted()
    writer = WritingCopy(policy)
    rollout = writer.sample(tiny.prompts(policy), tiny.sampling(temperature=0.7), seed=3)
    merged = dict(copy.deepcopy(policy.model).merge_and_unload().named_parameters())
    rounded = dict(writer._copy.model.named_parameters())
    assert rounded.keys() == merged.keys()
    assert all(torch.equal(weight, merged[name].to(torch.bfloat16)) for name, weight in rounded.items())
    there = rollout.response_mask
    own, policys = (each.logprobs(rollout)[there] for each in (writer._copy, policy))
    # The same weights in passes of other shapes, which round what is between them otherwise.
    assert (rollout.sampled_logprobs[there] - own).abs().mean() < 0.03
    assert (own - policys).abs().mean() > 1e-3


@pytest.mark.parametrize("make", [adapted, lambda: tiny.policy("llama", extra_eos=20, temperature=0.7)])
def test_every_rollout_is_written_with_the_weights_that_the_policy_has_by_then(make):
    policy = make()
    prompts, sampling = tiny.prompts(policy), tiny.sampling(temperature=0.7)
    writer = WritingCopy(policy)
    first = writer.sample(prompts, sampling, seed=3)
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.requires_grad:
                weight.mul_(1.25)
    second, fresh = (
        writer.sample(prompts, sampling, seed=3),
        WritingCopy(policy).sample(prompts, sampling, seed=3),
    )
    assert not torch.equal(first.sampled_logprobs, second.sampled_logprobs)
    assert torch.equal(second.response_ids, fresh.response_ids)
    assert torch.equal(second.sampled_logprobs, fresh.sampled_logprobs)


def test_under_autocast_the_copy_is_the_same():
    policy = adapted()
    prompts, sampling = tiny.prompts(policy), tiny.sampling(temperature=0.7)
    writer = WritingCopy(policy)
    plain = writer.sample(prompts, sampling, seed=3)
    with torch.autocast("cpu", torch.bfloat16):
        again = writer.sample(prompts, sampling, seed=3)
    assert torch.equal(plain.response_ids, again.response_ids)
    assert torch.equal(plain.sampled_logprobs, again.sampled_logprobs)


def test_responses_that_cannot_share_their_prompt_are_scored_by_the_copy_afterwards():
    policy = adapted()
    policy.sharing = Sharing("a test forbids it")
    writer = WritingCopy(policy)
    rollout = writer.sample(tiny.prompts(policy), tiny.sampling(temperature=0.7), seed=3)
    assert torch.equal(rollout.sampled_logprobs, writer._copy.logprobs(rollout))
    assert not torch.equal(rollout.sampled_logprobs, policy.logprobs(rollout))


def test_a_step_makes_no_pass_for_it_and_the_update_says_how_far_the_copy_is(monkeypatch):
    policy = adapted()
    step = tiny.make_step(policy, sampler=WritingCopy(policy), sampling=tiny.sampling(temperature=0.7))
    passes = []
    policy.register_forward_hook(lambda *_: passes.append(1))
    collected = step.collect(tiny.prompts(policy), seed=1)
    assert not passes
    assert "mismatch" not in measure(collected, step.world)
    differences = torch.cat(
        [
            (policy.logprobs(batch.rollout) - batch.rollout.sampled_logprobs)[batch.rollout.response_mask]
            for batch in collected.batches
        ]
    )
    told = step.update(collected.batches)
    assert len(passes) == len(collected.batches) == 2
    assert told["mismatch"] == pytest.approx(-float(differences.mean()), abs=1e-5)
    assert told["importance"] == pytest.approx(float(differences.exp().mean()), abs=1e-5)
    assert told["importance"] != pytest.approx(1, abs=1e-5)


def test_with_several_updates_the_row_says_it_and_the_ratio_begins_at_1():
    policy = adapted()
    step = tiny.make_step(
        policy,
        sampler=WritingCopy(policy),
        sampling=tiny.sampling(temperature=0.7),
        algorithm=Algorithm(AlgorithmSettings(epochs=2)),
    )
    collected = step.collect(tiny.prompts(policy), seed=1)
    row = measure(collected, step.world)
    assert {"mismatch", "importance", "importance_max"} <= row.keys()
    assert all(torch.equal(batch.old_logprobs, policy(batch.rollout).logprobs) for batch in collected.batches)
    assert "mismatch" not in step.update(collected.batches)


def test_the_gradient_is_corrected_by_the_copys_own_log_probabilities():
    gradients = []
    for corrected in (True, False):
        policy = adapted()
        step = tiny.make_step(
            policy,
            sampler=WritingCopy(policy),
            sampling=tiny.sampling(temperature=0.7),
            optimizer=torch.optim.SGD,
            groups_per_pass=4,
        )
        (batch,) = step.collect(tiny.prompts(policy), seed=1).batches
        if corrected:
            weight = (policy.logprobs(batch.rollout) - batch.rollout.sampled_logprobs).exp().clamp(max=2)
            scored = policy(batch.rollout)
            per_token = -batch.advantages * scored.logprobs
            per_token = per_token + 0.05 * (scored.logprobs - batch.ref_logprobs).square() / 2
            mask = batch.rollout.response_mask
            (weight * per_token * mask / mask.sum()).sum().backward()
        else:
            loss, _ = step._loss(batch, float(batch.rollout.response_mask.sum()), 12.0, [])
            loss.backward()
        gradients.append({n: w.grad.clone() for n, w in policy.named_parameters() if w.grad is not None})
    assert len(gradients[0]) > 10
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("more", [{"use_dora": True}, {"lora_bias": True}], ids=["DoRA", "bias"])
def test_an_adapter_that_cannot_be_merged_weight_by_weight_is_refused(more):
    settings = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **more)
    policy = load_policy(get_peft_model(tiny.make_model("qwen2"), settings), tiny.policy("qwen2").tokenizer)
    with pytest.raises(UnsupportedModelError, match=r"sampling\.dtype: the adapter of .* is of a kind"):
        WritingCopy(policy)
    with pytest.raises(UnsupportedModelError, match=r"sampling\.engine: the adapter of .* is of a kind"):
        WeightClient(None, torch.device("cpu"), 64).check(policy.model)


def test_a_model_that_rounding_changes_too_much_is_refused(monkeypatch):
    monkeypatch.setattr(writing_copy, "COARSE", 1e-6)
    with pytest.raises(UnsupportedModelError, match=r"move by 0\.\d+ nats a token \(at most \d\.?\d*e-0\d\)"):
        WritingCopy(adapted())
