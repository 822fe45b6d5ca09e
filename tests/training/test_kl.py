"""Estimators of the divergence against the exact one and its exact gradient, by enumerating a small vocabulary."""

import pytest
import torch

from cagsr.training.kl import KLController, k1, k2, k3

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


SECOND_Q = torch.tensor([[1.9, -0.2, 0.4], [0.1, -2.5, 2.7], [-1.0, 0.3, 0.6]], dtype=torch.float64)


def two_tokens():
    """[9 2] log-probabilities of p and of q, token by token, of every response of two tokens; and p's logits.

    The second token's distribution depends on the first token.
    """
    first = torch.tensor([0.3, -1.1, 0.8], dtype=torch.float64, requires_grad=True)
    second = torch.tensor([[2.0, -0.4, 0.5], [0.2, 0.7, -1.3], [-0.6, 1.0, 0.1]], dtype=torch.float64)
    second.requires_grad_()

    def responses(first, second):
        return torch.stack([first.log_softmax(-1)[:, None].expand(3, 3), second.log_softmax(-1)], -1).view(
            9, 2
        )

    return responses(first, second), responses(Q[:3], SECOND_Q), (first, second)


def gradients(loss, logits):
    return torch.autograd.grad(loss, logits, retain_graph=True)


def test_trap_17_over_a_response_k1_in_the_reward_has_the_whole_gradient_and_k2_each_tokens_own():
    log_p, log_q, logits = two_tokens()
    probability = log_p.sum(-1).exp()
    whole = gradients((probability * (log_p - log_q).sum(-1)).sum(), logits)

    sampled, d = probability.detach()[:, None], k1(log_p, log_q).detach()
    of_the_response = d.sum(-1, keepdim=True)
    from_here_on = d.flip(-1).cumsum(-1).flip(-1)
    for reward in (of_the_response, from_here_on):
        found = gradients((sampled * reward * log_p).sum(), logits)
        for one, expected in zip(found, whole, strict=True):
            torch.testing.assert_close(one, expected)

    first, second = gradients((sampled * k2(log_p, log_q)).sum(), logits)
    own = logits[0].log_softmax(-1)
    own_divergence = (own.exp() * (own - Q[:3].log_softmax(-1))).sum()
    torch.testing.assert_close(first, gradients(own_divergence, logits[0])[0])
    assert (first - whole[0]).abs().max() > 0.1
    # No token comes after the last one.
    torch.testing.assert_close(second, whole[1])


def test_estimates_by_hand():
    log_p, log_q = torch.tensor([-1.0, -3.0]), torch.tensor([-2.0, -1.0])
    assert k1(log_p, log_q).tolist() == [1.0, -2.0]
    assert k2(log_p, log_q).tolist() == [0.5, 2.0]
    torch.testing.assert_close(k3(log_p, log_q), torch.tensor([0.3678794, 7.3890561 - 3]))


def test_the_controller_steers_towards_its_target():
    controller = KLController(0.5, target=10.0, horizon=100)
    controller.observe(11.0, responses=20)
    assert controller.coefficient == pytest.approx(0.5 * (1 + 0.1 * 20 / 100))
    controller.observe(11.0, responses=20)
    assert controller.coefficient == pytest.approx(0.5 * 1.02**2)


@pytest.mark.parametrize(("measured", "factor"), [(1e6, 1 + 0.2 * 0.2), (0.0, 1 - 0.2 * 0.2), (10.0, 1.0)])
def test_the_controller_changes_by_at_most_a_fifth_of_what_it_saw(measured, factor):
    controller = KLController(0.5, target=10.0, horizon=100)
    controller.observe(measured, responses=20)
    assert controller.coefficient == pytest.approx(0.5 * factor)


def test_a_controller_without_target_is_fixed():
    controller = KLController(0.5)
    controller.observe(1e6, responses=1000)
    assert controller.coefficient == 0.5
