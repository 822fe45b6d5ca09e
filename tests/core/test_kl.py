"""Estimators of the divergence against the exact one and its exact gradient, by enumerating a small vocabulary."""

import pytest
import torch

from cagsr.kl import KLController, k1, k2, k3

LOGITS = torch.tensor([0.3, -1.1, 0.8, 2.0, -0.4], dtype=torch.float64)
Q = torch.tensor([0.5, 0.4, -0.3, 0.1, 1.2], dtype=torch.float64).log_softmax(-1)


def policy():
    logits = LOGITS.clone().requires_grad_()
    return logits, logits.log_softmax(-1)


def forward_divergence(log_p):
    return (log_p.exp() * (log_p - Q)).sum()


def expected_loss_gradient(estimator):
    """The mean gradient of the estimator as a loss on samples: E_p[d estimator(log p(y)) / d logits]."""
    logits, log_p = policy()
    loss = (log_p.detach().exp() * estimator(log_p, Q)).sum()
    return torch.autograd.grad(loss, logits)[0]


def exact_gradient(divergence):
    logits, log_p = policy()
    return torch.autograd.grad(divergence(log_p), logits)[0]


@pytest.mark.parametrize("estimator", [k1, k3])
def test_trap_17_k1_and_k3_are_unbiased(estimator):
    _, log_p = policy()
    expectation = (log_p.exp() * estimator(log_p, Q)).sum()
    torch.testing.assert_close(expectation, forward_divergence(log_p))


def test_trap_17_k2_is_biased_and_k3_is_never_negative():
    log_p = policy()[1].detach()
    assert (log_p.exp() * k2(log_p, Q)).sum() != pytest.approx(forward_divergence(log_p).item(), rel=0.01)
    assert (k3(log_p, Q) > 0).all()
    assert (k1(log_p, Q) < 0).any()


def test_trap_17_k1_as_a_loss_has_no_expected_gradient():
    torch.testing.assert_close(expected_loss_gradient(k1), torch.zeros(5, dtype=torch.float64))


def test_trap_17_k2_as_a_loss_has_the_gradient_of_the_divergence():
    expected = exact_gradient(forward_divergence)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(expected_loss_gradient(k2), expected)


def test_trap_17_k3_as_a_loss_has_the_gradient_of_the_reverse_divergence():
    reverse = exact_gradient(lambda log_p: (Q.exp() * (Q - log_p)).sum())
    torch.testing.assert_close(expected_loss_gradient(k3), reverse)
    assert not torch.allclose(reverse, exact_gradient(forward_divergence), rtol=0.1)


def test_trap_17_k1_in_the_reward_has_the_gradient_of_the_divergence():
    logits, log_p = policy()
    score_function = (log_p.detach().exp() * k1(log_p, Q).detach() * log_p).sum()
    torch.testing.assert_close(
        torch.autograd.grad(score_function, logits)[0], exact_gradient(forward_divergence)
    )


def test_estimates_by_hand():
    log_p, log_q = torch.tensor([-1.0, -3.0]), torch.tensor([-2.0, -1.0])
    assert k1(log_p, log_q).tolist() == [1.0, -2.0]
    assert k2(log_p, log_q).tolist() == [0.5, 2.0]
    torch.testing.assert_close(k3(log_p, log_q), torch.tensor([0.3678794, 7.3890561 - 3]))


def test_the_controller_steers_towards_its_target():
    leash = KLController(0.5, target=10.0, horizon=100)
    leash.observe(11.0, responses=20)
    assert leash.coefficient == pytest.approx(0.5 * (1 + 0.1 * 20 / 100))
    leash.observe(11.0, responses=20)
    assert leash.coefficient == pytest.approx(0.5 * 1.02**2)


@pytest.mark.parametrize(("measured", "factor"), [(1e6, 1 + 0.2 * 0.2), (0.0, 1 - 0.2 * 0.2), (10.0, 1.0)])
def test_the_controller_changes_by_at_most_a_fifth_of_what_it_saw(measured, factor):
    leash = KLController(0.5, target=10.0, horizon=100)
    leash.observe(measured, responses=20)
    assert leash.coefficient == pytest.approx(0.5 * factor)


def test_a_controller_without_target_is_fixed():
    leash = KLController(0.5)
    leash.observe(1e6, responses=1000)
    assert leash.coefficient == 0.5
