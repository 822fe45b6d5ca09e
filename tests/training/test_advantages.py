"""Advantages against values computed by hand and against the textbook's double sum."""

import pytest
import torch
from accelerate import Accelerator

from cagsr.config import registry
from cagsr.config.schema import AlgorithmSettings
from cagsr.distributed.process_group import World
from cagsr.training.algorithms import Algorithm
from cagsr.training.estimators.batch_baseline import batch_baseline
from cagsr.training.estimators.centred import group_centred
from cagsr.training.estimators.gae import gae, token_rewards, whiten
from cagsr.training.estimators.group import group_relative
from cagsr.training.estimators.leave_one_out import leave_one_out
from cagsr.types import Rollout, TrainBatch


def test_a_group_is_centred_and_divided_by_its_own_spread():
    # Mean 3, sample variance (4 + 1 + 9) / 2 = 7; then mean 10 and sample variance (4 + 1 + 1) / 2 = 3.
    rewards = torch.tensor([1.0, 2.0, 6.0, 12.0, 9.0, 9.0], dtype=torch.float64)
    expected = [-2 / 7**0.5, -1 / 7**0.5, 3 / 7**0.5, 2 / 3**0.5, -1 / 3**0.5, -1 / 3**0.5]
    torch.testing.assert_close(group_relative(rewards, 3), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("value", [0.0, 1e-3, 7.0, -1e6])
def test_trap_19_equal_rewards_give_no_advantage(value):
    assert group_relative(torch.full((10,), value), 5).tolist() == [0.0] * 10


def test_trap_19_rewards_that_differ_by_rounding_only_give_no_advantage():
    rewards = torch.tensor([0.1 + 0.2, 0.3, 0.3, 0.3], dtype=torch.float32)
    noisy = torch.tensor([0.3, 0.3000001, 0.3, 0.3], dtype=torch.float32)
    assert noisy[0] != noisy[1]
    assert group_relative(rewards, 4).tolist() == [0.0] * 4
    assert group_relative(noisy, 4).tolist() == [0.0] * 4


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1e6])
def test_trap_19_group_advantages_do_not_depend_on_the_scale_of_the_reward(scale):
    rewards = torch.tensor([0.2, 0.5, 0.9, -0.1, 0.3], dtype=torch.float64)
    torch.testing.assert_close(group_relative(scale * rewards, 5), group_relative(rewards, 5))


def test_trap_19_advantages_do_not_depend_on_where_a_group_sits():
    rewards = torch.randn(21, generator=torch.Generator().manual_seed(0))
    order = [4, 0, 6, 2, 1, 5, 3]
    for name in ("grpo", "dr-grpo", "rloo", "policy-gradient"):
        estimate = registry.load(registry.ESTIMATORS[name])
        moved = estimate(rewards.view(7, 3)[order].flatten(), 3)
        torch.testing.assert_close(moved, estimate(rewards, 3).view(7, 3)[order].flatten())


def test_a_group_that_is_only_centred_keeps_its_spread():
    # Means 3 and 10.
    advantages = group_centred(torch.tensor([1.0, 2.0, 6.0, 12.0, 9.0, 9.0]), 3)
    assert advantages.tolist() == [-2.0, -1.0, 3.0, 2.0, -1.0, -1.0]


def test_leave_one_out_subtracts_the_mean_of_the_others():
    advantages = leave_one_out(torch.tensor([1.0, 2.0, 6.0, 10.0, 20.0, 0.0]), 3)
    assert advantages.tolist() == [1 - 4, 2 - 3.5, 6 - 1.5, 10 - 10, 20 - 5, 0 - 15]


def test_batch_baseline_is_the_mean_of_all_other_responses():
    advantages = batch_baseline(torch.tensor([3.0, 7.0, 11.0, 3.0]), 2)
    torch.testing.assert_close(advantages, torch.tensor([3 - 7.0, 7 - 17 / 3, 11 - 13 / 3, 3 - 7.0]))


@pytest.mark.parametrize("estimate", [leave_one_out, batch_baseline])
def test_a_baseline_does_not_depend_on_the_response_it_is_subtracted_from(estimate):
    # Unbiased means: changing r_i changes A_i by exactly as much.
    rewards = torch.tensor([1.0, 4.0, 2.0, 8.0], dtype=torch.float64)
    before = estimate(rewards, 2)
    for row in range(4):
        changed = rewards.clone()
        changed[row] += 5.0
        assert estimate(changed, 2)[row] - before[row] == pytest.approx(5.0)


def test_the_reward_stands_at_the_last_token_and_the_penalty_at_every_token():
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]], dtype=torch.bool)
    penalty = torch.tensor([[0.1, 0.2, 0.3], [0.5, 9.0, 9.0]])
    rewards = token_rewards(torch.tensor([2.0, 3.0]), penalty, mask)
    torch.testing.assert_close(rewards, torch.tensor([[-0.1, -0.2, 1.7], [2.5, 0.0, 0.0]]))


def naive_gae(rewards, values, lengths, discount, trace):
    """A_t = sum over l of (discount * trace)^l * delta_{t+l}, as the paper writes it."""
    advantages = torch.zeros_like(rewards)
    for n, length in enumerate(lengths):
        deltas = []
        for t in range(length):
            following = values[n, t + 1] if t + 1 < length else 0.0
            deltas.append(rewards[n, t] + discount * following - values[n, t])
        for t in range(length):
            for later in range(t, length):
                advantages[n, t] += (discount * trace) ** (later - t) * deltas[later]
    return advantages


@pytest.mark.parametrize(("discount", "trace"), [(0.9, 0.7), (1.0, 0.95), (1.0, 1.0), (0.8, 0.0), (0.0, 1.0)])
def test_gae_equals_the_double_sum_on_ragged_responses(discount, trace):
    generator = torch.Generator().manual_seed(1)
    lengths = [7, 1, 4, 5, 2]
    mask = torch.arange(7) < torch.tensor(lengths)[:, None]
    # What stands at padding is huge, so that it would show.
    rewards = torch.randn(5, 7, generator=generator, dtype=torch.float64).where(mask, 0.0)
    values = torch.randn(5, 7, generator=generator, dtype=torch.float64).where(mask, 1e6)
    advantages, returns = gae(rewards, values, mask, discount=discount, trace=trace)
    expected = naive_gae(rewards, values, lengths, discount, trace)
    torch.testing.assert_close(advantages, expected)
    torch.testing.assert_close(returns, (expected + values) * mask)


def test_gae_at_its_extremes_by_hand():
    rewards = torch.tensor([[1.0, 2.0, 4.0]])
    values = torch.tensor([[0.5, 0.25, 3.0]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    # trace 1, discount 1: the whole reward to come minus the value. trace 0: one step ahead only.
    full, returns = gae(rewards, values, mask, discount=1.0, trace=1.0)
    assert full.tolist() == [[6.5, 5.75, 1.0]]
    assert returns.tolist() == [[7.0, 6.0, 4.0]]
    ahead, _ = gae(rewards, values, mask, discount=1.0, trace=0.0)
    assert ahead.tolist() == [[0.75, 4.75, 1.0]]
    blind, _ = gae(rewards, values, mask, discount=0.0, trace=1.0)
    assert blind.tolist() == [[0.5, 1.75, 1.0]]


def test_whitened_advantages_have_mean_0_and_variance_1_over_all_processes():
    generator = torch.Generator().manual_seed(2)
    advantages = 3 + 5 * torch.randn(6, 7, generator=generator, dtype=torch.float64)
    mask = torch.arange(7) < torch.tensor([7, 3, 1, 5, 2, 7])[:, None]
    sums = []

    def of_two_ranks(local):
        sums.append(local)
        return sum(partial)

    # What each rank hands to `total`, then the same sum for both.
    partial = []
    for rank in (slice(0, 2), slice(2, 6)):
        whiten(advantages[rank], mask[rank], lambda local: partial.append(local) or local)
    halves = [whiten(advantages[r], mask[r], of_two_ranks) for r in (slice(0, 2), slice(2, 6))]
    together = whiten(advantages, mask, lambda local: local)
    torch.testing.assert_close(torch.cat(halves), together)
    kept = together[mask]
    assert kept.mean().item() == pytest.approx(0, abs=1e-12)
    assert kept.std(unbiased=False).item() == pytest.approx(1)
    assert not together[~mask].any()


def test_whitening_equal_advantages_gives_zeros():
    mask = torch.tensor([[True, True, False]])
    assert whiten(torch.full((1, 3), 7.0), mask, lambda local: local).tolist() == [[0.0, 0.0, 0.0]]


def given_rewards(rewards, lengths, group_size, **settings):
    """Returns and advantages of PPO's estimate for responses with these rewards, a critic that says 0 and no KL."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids, prompts = mask.long(), [None] * (len(rewards) // group_size)
    rollout = Rollout(prompts, ids, mask, ids, mask, mask[:, 0], [""] * len(rewards))
    zeros = torch.zeros(mask.shape)
    part = TrainBatch(rollout, zeros, old_logprobs=zeros, entropy=zeros, values=zeros)
    algorithm = Algorithm(AlgorithmSettings(name="ppo", **settings))
    world = World(Accelerator(cpu=True))
    (batch,) = algorithm.estimate(torch.tensor(rewards), [part], kl_coefficient=0.1, world=world)
    return batch.returns, batch.advantages


def test_a_critic_starts_from_the_mean_of_the_other_candidates():
    # Groups 1, 3, 8 and 5, 5, 20: less the mean of the others -4.5, -1.5, 6 and -7.5, -7.5, 15.
    lengths = [3, 1, 2, 2, 3, 1]
    returns, advantages = given_rewards([1.0, 3.0, 8.0, 5.0, 5.0, 20.0], lengths, 3)
    expected = [-4.5, -1.5, 6.0, -7.5, -7.5, 15.0]
    for row, (value, length) in enumerate(zip(expected, lengths, strict=True)):
        assert returns[row].tolist() == [value] * length + [0.0] * (3 - length)
    # All tokens of a response have one advantage; over tokens their mean is 0 and their variance 1.
    tokens = torch.tensor(
        [value for value, length in zip(expected, lengths, strict=True) for _ in range(length)]
    )
    standard = (torch.tensor(expected) - tokens.mean()) / tokens.std(unbiased=False)
    torch.testing.assert_close(advantages[:, 0], standard)


def test_a_critic_starts_from_nothing_where_it_is_told_to_or_has_no_group():
    for group_size, settings in ((2, {"value_baseline": "none"}), (1, {})):
        returns, _ = given_rewards([1.0, 3.0], [2, 3], group_size, **settings)
        assert returns.tolist() == [[1.0, 1.0, 0.0], [3.0, 3.0, 3.0]]


def test_below_1_lambda_takes_the_reward_from_the_first_tokens_of_a_critic_that_knows_nothing():
    returns, _ = given_rewards([1.0, 3.0], [2, 3], 2, gae_lambda=0.5)
    assert returns.tolist() == [[-1.0, -2.0, 0.0], [0.5, 1.0, 2.0]]
