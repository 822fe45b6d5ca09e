"""The benchmark of a real model's step: what it counts, what it asks, and that its steps are those of the product."""

from dataclasses import replace

import pytest
import torch

import tiny
from benchmarks import real
from benchmarks.subjects import Shape, step_from, whole_step
from cagsr.models.reference import Reference

CASE = real.CASES["1.6:1"]
TINY = replace(real.QUICK, layers=5, candidates=3, response_tokens=7)


@pytest.fixture(scope="module")
def subject():
    with real.subject(TINY, CASE, quick=True) as found:
        yield found


def test_the_floor_counts_every_product_once_for_sampling_and_scoring_and_twice_for_training():
    shape = Shape(layers=7, hidden=3, vocabulary=5, prompts=1, candidates=5, response_tokens=2)
    # Tokens: 3 + 5 * 2. A token's weights: 3 x 3 twice and 3 x 1 twice in attention, three times 3 x 8 after it.
    linear, attention, head = 13 * 2 * (2 * 9 + 2 * 3 + 3 * 24), 4 * 3 * (6 + 5 * 9), 2 * 3 * 5 * 10
    assert real.floor_flops(shape, [3]) == pytest.approx(4 * (7 * (linear + attention) + head))


def test_the_chats_have_the_facts_that_were_asked_for_and_others_follow_them():
    first, second, *others = (chat[0]["content"] for chat in real.chats(CASE))
    assert (first.count(": "), second.count(": ")) == (4, 6)
    assert len(others) == 22
    longer = real.chats(real.CASES["6:1"])[0][0]["content"]
    assert longer.count("name: ") == 5
    assert longer.count(": ") == 5 * 6


@pytest.mark.parametrize("preset", [*real.PRESETS.values()])
def test_a_step_of_each_preset_trains_the_adapter_on_two_ragged_chats(subject, preset):
    step, prompts = step_from(real.config_of(TINY, preset, *subject))
    used = prompts[: TINY.prompts]
    assert len(used[0].ids) < len(used[1].ids)
    assert len(prompts) == 24
    assert len(step.policy.readable.layers) == (2 if preset.startswith("attention") else 5)
    trained = {name for name, weight in step.policy.named_parameters() if weight.requires_grad}
    assert len(trained) == 5 * 7 * 2
    assert all(".lora_" in name for name in trained)
    before = tiny.weights_of(step.policy)
    whole_step(step, used)
    moved = {name for name, weight in step.policy.named_parameters() if not torch.equal(weight, before[name])}
    # All responses are equally long, so that length tells none from another.
    assert bool(moved) == (preset != "length")
    assert moved <= trained


def test_a_reference_that_is_not_read_tells_the_same_log_probabilities(subject):
    step, prompts = step_from(real.config_of(TINY, "length", *subject))
    rollout = step.policy.sample(prompts[:2], step.sampling)
    told, read = real.Unread(step.policy).observe(rollout), Reference(step.policy).observe(rollout)
    torch.testing.assert_close(told.logprobs, read.logprobs, rtol=0, atol=1e-5)
    assert read.attention.shape == told.attention.shape
    assert not told.attention.any()
    assert read.attention.any()


def test_the_heads_that_are_read_are_as_many_as_are_learnt():
    weights = real.heads_of(real.SHAPE)
    assert sum(sum(row) for row in weights.values()) == real.LEARNT == 24
    assert {len(row) for row in weights.values()} == {9}
    assert max(weights) < 30
