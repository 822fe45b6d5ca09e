"""The leash: how far the policy may walk from the model it started as.

With d = log p(y) - log q(y), y drawn from the policy p and q the reference (natural logarithms, [N T]):

    k1 = d                    unbiased estimate of KL(p || q); belongs into the reward, not into a loss:
                              the expected gradient of k1 through its log-probabilities is 0.
    k2 = d^2 / 2              the expected gradient is exactly that of KL(p || q): belongs into a loss.
    k3 = exp(-d) - 1 + d      unbiased, never negative, low variance: for display. As a loss its expected
                              gradient is that of KL(q || p).

Source: J. Schulman, "Approximating KL divergence" (2020); for the gradients, tests/test_kl.py checks each against
the exact divergence on a small vocabulary.
Differs: GRPO (arXiv 2402.03300) puts k3 into the loss; we put k2 there, whose gradient is the one meant.
"""

from torch import Tensor

__all__ = ["KLController", "k1", "k2", "k3"]


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    return logprobs - ref_logprobs


def k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    return (logprobs - ref_logprobs).square() / 2


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    difference = logprobs - ref_logprobs
    return (-difference).exp() - 1 + difference


class KLController:
    """The KL coefficient: fixed, or steered towards ``target`` nats a response.

    After each step with measured KL, the coefficient grows or shrinks by at most 20 % in proportion to the error,
    scaled by how many responses were seen in relation to ``horizon``.

    Source: Ziegler et al., arXiv 1909.08593, section 2.2.
    """

    def __init__(self, coefficient: float, target: float | None = None, horizon: int = 10_000):
        self.coefficient, self.target, self.horizon = coefficient, target, horizon

    def observe(self, kl_per_response: float, responses: int) -> None:
        if self.target is None:
            return
        error = max(-0.2, min(0.2, kl_per_response / self.target - 1))
        self.coefficient *= 1 + error * responses / self.horizon
