"""Importance weights of tokens that another engine drew, by hand."""

import pytest
import torch

from cagsr.config.schema import AlgorithmSettings
from cagsr.models.predictions import Scored
from cagsr.training.algorithms import Algorithm
from cagsr.training.importance import importance_weight
from cagsr.types import Rollout, TrainBatch

# Ratios 3, 0.5, 1 of a response of three tokens (product 1.5), and 0.5, 5 of one of two (product 2.5).
RATIOS = torch.tensor([[3.0, 0.5, 1.0], [0.5, 5.0, 7.0]], dtype=torch.float64)
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]], dtype=torch.bool)
BY_HAND = {
    "token_truncate": ([2.0, 0.5, 1.0, 0.5, 2.0], [True, False, False, False, True]),
    "token_mask": ([0.0, 0.5, 1.0, 0.5, 0.0], [True, False, False, False, True]),
    "sequence_truncate": ([1.5, 1.5, 1.5, 2.0, 2.0], [False, False, False, True, True]),
    "sequence_mask": ([1.5, 1.5, 1.5, 0.0, 0.0], [False, False, False, True, True]),
}


@pytest.mark.parametrize("how", BY_HAND)
def test_weights_by_hand(how):
    engine = torch.full_like(RATIOS, -2.0)
    policy = (engine + RATIOS.log()).requires_grad_()
    weight, beyond = importance_weight(policy, engine, MASK, how, limit=2.0)
    expected, cut = BY_HAND[how]
    torch.testing.assert_close(weight[MASK], torch.tensor(expected, dtype=torch.float64))
    assert beyond[MASK].tolist() == cut
    assert not weight.requires_grad


@pytest.mark.parametrize("how", BY_HAND)
def test_a_response_whose_product_overflows_has_a_weight_that_is_finite(how):
    policy, engine = torch.full((1, 200), -0.1), torch.full((1, 200), -5.0)
    assert ((policy - engine).sum().exp()).isinf()
    weight, beyond = importance_weight(policy, engine, torch.ones(1, 200, dtype=torch.bool), how, limit=3.0)
    assert weight.unique().tolist() == [3.0 if how.endswith("truncate") else 0.0]
    assert beyond.all()


@pytest.mark.parametrize("how", BY_HAND)
def test_the_weight_multiplies_the_policys_loss_and_the_kl_and_what_is_cut_is_counted(how):
    engine = torch.full(RATIOS.shape, -2.0)
    logprobs = torch.where(MASK, engine + RATIOS.float().log(), 0.0).requires_grad_()
    ids = torch.arange(6).view(2, 3)
    rollout = Rollout([], ids, MASK, ids, MASK, torch.tensor([False, False]), ["", ""], engine * MASK)
    reference = logprobs.detach() - 0.5 * MASK
    advantages = torch.tensor([[1.0], [-3.0]]) * MASK
    batch = TrainBatch(rollout, reference, advantages=advantages)
    algorithm = Algorithm(AlgorithmSettings(importance=how, importance_limit=2.0))
    loss, parts = algorithm.token_losses(Scored(logprobs, torch.zeros(2, 3), None), batch, kl_coefficient=0.4)
    expected, cut = BY_HAND[how]
    weight = torch.tensor(expected)
    # At ratio 1 of the update the loss is -A, and k2 is 0.5 ** 2 / 2.
    torch.testing.assert_close(parts["policy_loss"][MASK], -weight * advantages[MASK])
    torch.testing.assert_close(loss[MASK].detach(), weight * (0.4 * 0.125 - advantages[MASK]))
    assert parts["importance_cut"][MASK].tolist() == [float(each) for each in cut]
