"""Losses by hand, gradients included, and the sums that make micro-batches add up."""

import pytest
import torch

from cagsr.training.losses import NORMALISATIONS, clipped_value_loss, token_weights
from cagsr.training.policy_losses.clipped import clipped

MASK = torch.ones(6, dtype=torch.bool)


def test_the_policy_loss_is_clipped_on_the_side_that_would_gain():
    ratios = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1, 0.9], dtype=torch.float64)
    advantages = torch.tensor([2.0, -2.0, 2.0, -2.0, 2.0, -2.0], dtype=torch.float64)
    logprobs = ratios.log().requires_grad_()
    found = clipped(logprobs, torch.zeros(6, dtype=torch.float64), advantages, MASK, clip=0.2)
    assert found.clipped.tolist() == [True, True, True, True, False, False]
    loss = found.per_token
    torch.testing.assert_close(
        loss.detach(), torch.tensor([-2.4, 3.0, -1.0, 1.6, -2.2, 1.8], dtype=torch.float64)
    )
    # d(-ratio A)/d logprob = -ratio A, and 0 where the clipped side was taken.
    gradient = torch.autograd.grad(loss.sum(), logprobs)[0]
    torch.testing.assert_close(gradient, torch.tensor([0.0, 3.0, -1.0, 0.0, -2.2, 1.8], dtype=torch.float64))


def test_at_ratio_one_the_gradient_is_that_of_the_policy_gradient():
    logprobs = torch.tensor([-0.7, -2.3, -1.1], requires_grad=True)
    advantages = torch.tensor([3.0, -5.0, 0.0])
    loss = clipped(logprobs, logprobs.detach(), advantages, MASK[:3], clip=0.2).per_token
    assert loss.tolist() == [-3.0, 5.0, 0.0]
    assert torch.autograd.grad(loss.sum(), logprobs)[0].tolist() == [-3.0, 5.0, 0.0]


def test_the_value_loss_takes_the_worse_of_clipped_and_unclipped():
    values = torch.tensor([1.0, 3.0, -1.0, 1.1], requires_grad=True)
    old, returns = torch.ones(4), torch.tensor([2.0, 2.0, 1.0, 5.0])
    loss = clipped_value_loss(values, old, returns, clip=0.5)
    # Row 1: V 3 clips to 1.5; (3 - 2)^2 = 1 > 0.25. Row 2: V -1 clips to 0.5; (-2)^2 = 4. Row 3: inside.
    torch.testing.assert_close(loss.detach(), torch.tensor([0.5, 0.5, 2.0, 3.9**2 / 2]))
    torch.testing.assert_close(
        torch.autograd.grad(loss.sum(), values)[0], torch.tensor([-1.0, 1.0, -2.0, -3.9])
    )


def test_the_value_loss_has_no_gradient_where_the_clipped_value_is_worse():
    values = torch.tensor([2.0], requires_grad=True)
    loss = clipped_value_loss(values, torch.tensor([0.0]), torch.tensor([3.0]), clip=0.5)
    # V 2 clips to 0.5: (0.5 - 3)^2 / 2 = 3.125 is worse than (2 - 3)^2 / 2, and does not move with V.
    assert loss.item() == 3.125
    assert torch.autograd.grad(loss.sum(), values)[0].item() == 0.0


MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]], dtype=torch.bool)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("token", [[1 / 11, 1 / 11, 1 / 11, 0], [1 / 11, 0, 0, 0]]),
        ("sequence", [[1 / 15, 1 / 15, 1 / 15, 0], [1 / 5, 0, 0, 0]]),
        ("constant", [[1 / 35, 1 / 35, 1 / 35, 0], [1 / 35, 0, 0, 0]]),
    ],
)
def test_weights_by_hand(how, expected):
    weights = token_weights(MASK, how, tokens=11, rows=5, length_limit=7)
    torch.testing.assert_close(weights, torch.tensor(expected))


def test_an_unknown_normalisation_is_refused():
    with pytest.raises(ValueError, match="normalisation must be one of"):
        token_weights(MASK, "mean", tokens=1, rows=1, length_limit=1)


@pytest.mark.parametrize("how", NORMALISATIONS)
def test_trap_18_batch_8_equals_8_times_batch_1_on_ragged_responses(how):
    generator = torch.Generator().manual_seed(3)
    mask = torch.arange(11) < torch.tensor([11, 1, 7, 3, 5, 2, 11, 4])[:, None]
    per_token = torch.randn(8, 11, generator=generator, dtype=torch.float64)
    totals = {"tokens": float(mask.sum()), "rows": 8.0, "length_limit": 13}
    whole = (per_token * token_weights(mask, how, **totals)).sum()
    parts = 0.0
    for row in range(8):
        # A part carries no surplus padding, so its width differs too.
        width = int(mask[row].sum())
        part = mask[row : row + 1, :width]
        parts += (per_token[row : row + 1, :width] * token_weights(part, how, **totals)).sum()
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=0)
