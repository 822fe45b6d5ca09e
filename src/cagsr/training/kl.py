"""KL penalty: estimators of the divergence from the reference model, and the controller of its coefficient.

With d = log p(y) - log q(y), y drawn from the policy p and q the reference (natural logarithms, [N T]):

    k1 = d                    unbiased estimate of KL(p || q); belongs into the reward, not into a loss:
                              the expected gradient of k1 through its log-probabilities is 0.
    k2 = d^2 / 2              as a loss, the expected gradient is that of the divergence of this token's own
                              distribution, given the tokens before it.
    k3 = exp(-d) - 1 + d      unbiased, never negative, low variance: for display. As a loss its expected
                              gradient is that of KL(q || p), another direction: a sample pulls with 1 - exp(-d),
                              at most 1 however unlikely the reference finds the token, where k2 pulls with d.

A token also decides which distributions the later tokens are drawn from. Of the divergence of whole responses,

    grad KL(p || q) = E[ sum_t  grad log p(y_t) * (d_t + d_{t+1} + ... + d_T) ],

k2 summed over tokens has the terms grad log p(y_t) * d_t alone; k1 in the reward has them all. For a response of
one token the two are equal.

Source: J. Schulman, "Approximating KL divergence" (2020); for the gradients, tests/training/test_kl.py checks each
against the exact divergence, for one token and for two, on a small vocabulary.
Differs: GRPO (arXiv 2402.03300) puts k3 into the loss, whose gradient is of the other direction even for the
token's own distribution; we put k2 there, unless ``algorithm.kl_estimate`` says k3.
"""

from torch import Tensor

__all__ = ["KLController", "k1", "k2", "k3", "sums"]


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """log p - log q [N T], in nats, of either sign: for the reward."""
    return logprobs - ref_logprobs


def k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """(log p - log q)^2 / 2 [N T], at least 0: for the loss."""
    return (logprobs - ref_logprobs).square() / 2


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """exp(log q - log p) - 1 + log p - log q [N T], at least 0: for display; for the loss see above."""
    difference = logprobs - ref_logprobs
    return (-difference).exp() - 1 + difference


def sums(logprobs: Tensor, ref_logprobs: Tensor, entropy: Tensor) -> dict[str, Tensor]:
    """KL metrics summed over tokens: kl (k3), kl_response (k1) and entropy, all in nats."""
    return {
        "kl": k3(logprobs, ref_logprobs).sum(),
        "kl_response": k1(logprobs, ref_logprobs).sum(),
        "entropy": entropy.sum(),
    }


class KLController:
    """The KL coefficient: fixed, or steered towards ``target`` nats a response.

    After each step with measured KL, the coefficient grows or shrinks by at most 20 % in proportion to the error,
    scaled by how many responses were seen in relation to ``horizon``.

    Source: Ziegler et al., arXiv 1909.08593, section 2.2.
    """

    def __init__(self, coefficient: float, target: float | None = None, horizon: int = 10_000):
        self.coefficient, self.target, self.horizon = coefficient, target, horizon

    def observe(self, kl_per_response: float, responses: int) -> None:
        """Adapt the coefficient to a step's mean KL (nats a response) over so many ``responses``."""
        if self.target is None:
            return
        error = max(-0.2, min(0.2, kl_per_response / self.target - 1))
        self.coefficient *= 1 + error * responses / self.horizon
