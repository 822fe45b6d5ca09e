"""The benchmark of a real model's step: what it counts, what it asks, and that its steps are those of the product."""

from dataclasses import replace

import pytest
import torch

import tiny
from benchmarks import real, real_model
from benchmarks.subjects import Shape, whole_step
from cagsr.models.reference import Reference

CASE = real_model.CASES["1.6:1"]
TINY = replace(real_model.QUICK, layers=5, candidates=3, response_tokens=7)


@pytest.fixture(scope="module")
def subject():
    with real_model.subject(TINY, CASE, quick=True) as found:
        yield found


def test_the_floor_counts_every_product_once_for_sampling_and_scoring_and_twice_for_training():
    shape = Shape(layers=7, hidden=3, vocabulary=5, prompts=1, candidates=5, response_tokens=2)
    # Tokens: 3 + 5 * 2. A token's weights: 3 x 3 twice and 3 x 1 twice in attention, three times 3 x 8 after it.
    linear, attention, head = 13 * 2 * (2 * 9 + 2 * 3 + 3 * 24), 4 * 3 * (6 + 5 * 9), 2 * 3 * 5 * 10
    assert real_model.floor_flops(shape, [3]) == pytest.approx(4 * (7 * (linear + attention) + head))


def test_the_chats_have_the_facts_that_were_asked_for_and_others_follow_them():
    first, second, *others = (chat[0]["content"] for chat in real_model.chats(CASE))
    assert (first.count(": "), second.count(": ")) == (4, 6)
    assert len(others) == 22
    longer = real_model.chats(real_model.CASES["6:1"])[0][0]["content"]
    assert longer.count("name: ") == 5
    assert longer.count(": ") == 5 * 6


@pytest.mark.parametrize("name", [*real_model.WAYS])
def test_a_step_of_each_way_trains_the_adapter_on_two_ragged_chats(subject, name):
    step, used = real_model.build(name, TINY, *subject)
    assert len(used[0].ids) < len(used[1].ids)
    assert len(used) == 2
    assert len(step.policy.readable.layers) == (2 if "attention" in name else 5)
    trained = {name for name, weight in step.policy.named_parameters() if weight.requires_grad}
    assert len(trained) == 5 * 7 * 2
    assert all(".lora_" in name for name in trained)
    before = tiny.weights_of(step.policy)
    whole_step(step, used)
    moved = {name for name, weight in step.policy.named_parameters() if not torch.equal(weight, before[name])}
    # All responses are equally long, so that length tells none from another.
    assert bool(moved) == (name != real_model.UNREAD)
    assert moved <= trained


def test_a_reference_that_is_not_read_tells_the_same_log_probabilities(subject):
    step, prompts = real_model.build("cagsr, coverage", TINY, *subject)
    rollout = step.policy.sample(prompts, step.sampling)
    told, read = real_model.Unread(step.policy).observe(rollout), Reference(step.policy).observe(rollout)
    torch.testing.assert_close(told.logprobs, read.logprobs, rtol=0, atol=1e-5)
    assert read.attention.shape == told.attention.shape
    assert not told.attention.any()
    assert read.attention.any()


def test_the_heads_that_are_read_are_as_many_as_are_learnt():
    weights = real_model.heads_of(real_model.SHAPE)
    assert sum(sum(row) for row in weights.values()) == real_model.LEARNT == 24
    assert {len(row) for row in weights.values()} == {9}
    assert max(weights) < 30


def test_rounding_is_told_where_there_is_some(subject):
    writing, passes = real.errors(TINY, *subject)
    assert 0 < float(writing[1]) < float(writing[2])
    assert float(passes[3]) >= 0
    assert 0.9 < float(passes[4]) < 1.0001
