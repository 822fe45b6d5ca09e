"""Policy losses by hand, and their gradients in float64 against the formulas of their papers, written plainly."""

import math

import pytest
import torch
from torch import Tensor

from cagsr.config import registry
from cagsr.config.schema import Loss
from cagsr.errors import InputError
from cagsr.training.losses import NORMALISATIONS, token_weights
from cagsr.training.policy_losses import find_loss
from cagsr.training.policy_losses.cispo import cispo
from cagsr.training.policy_losses.clipped import clipped
from cagsr.training.policy_losses.gspo import gspo

ZEROS = torch.zeros(5, dtype=torch.float64)
MASK = torch.ones(5, dtype=torch.bool)


def doubles(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def found_and_gradient(loss, ratios, advantages, mask, **options):
    """The loss at these ratios to an old policy whose log-probabilities are -1, and its gradient."""
    old = torch.full_like(ratios, -1.0)
    logprobs = (old + ratios.log()).requires_grad_()
    found = loss(logprobs, old, advantages, mask, **options)
    return found, torch.autograd.grad(found.per_token.sum(), logprobs)[0]


def test_a_higher_bound_above_lets_a_token_grow_further():
    ratios, advantages = doubles(1.25, 1.5, 0.75, 0.75, 1.25), doubles(2.0, 2.0, -2.0, 2.0, -2.0)
    found, gradient = found_and_gradient(clipped, ratios, advantages, MASK, clip=0.2, clip_high=0.28)
    torch.testing.assert_close(found.per_token.detach(), doubles(-2.5, -2.56, 1.6, -1.5, 2.5))
    torch.testing.assert_close(gradient, doubles(-2.5, 0.0, 0.0, -1.5, 2.5))
    assert found.clipped.tolist() == [False, True, True, True, False]
    # At 0.2 on both sides the first one is cut too.
    found, gradient = found_and_gradient(clipped, ratios, advantages, MASK, clip=0.2)
    torch.testing.assert_close(found.per_token.detach(), doubles(-2.4, -2.4, 1.6, -1.5, 2.5))
    assert gradient[0] == 0
    assert found.clipped.all()


def test_cispo_bounds_the_weight_of_a_token_and_never_takes_its_gradient_away():
    ratios, advantages = doubles(1.0, 7.0, 7.0, 0.1, 3.0), doubles(2.0, 2.0, -3.0, 5.0, 0.0)
    found, gradient = found_and_gradient(cispo, ratios, advantages, MASK, largest=5.0)
    # -min(ratio, 5) A, whatever the sign of A.
    torch.testing.assert_close(gradient, doubles(-2.0, -10.0, 15.0, -0.5, 0.0))
    assert found.clipped.tolist() == [False, True, True, False, False]
    torch.testing.assert_close(found.per_token[0].detach(), doubles(2.0)[0])  # -1 * 2 * log-probability -1


# Two responses, of three tokens and of one; what stands at padding is huge, so that it would show.
RAGGED = torch.tensor([[1, 1, 1], [1, 0, 0]], dtype=torch.bool)


def test_gspo_has_one_ratio_a_response_the_geometric_mean_of_its_tokens():
    ratios = torch.tensor([[2.0, 4.0, 1.0], [0.5, 1e9, 1e9]], dtype=torch.float64)
    advantages = torch.tensor([[3.0] * 3, [-5.0] * 3], dtype=torch.float64)
    found, gradient = found_and_gradient(gspo, ratios, advantages, RAGGED, clip=0.6, clip_high=1.5)
    # (2 * 4 * 1) ** (1 / 3) = 2 and 0.5, both inside: -s A for each token, and that is its gradient.
    torch.testing.assert_close(found.per_token[0].detach(), doubles(-6.0, -6.0, -6.0))
    torch.testing.assert_close(found.per_token[1, 0].detach(), doubles(2.5)[0])
    torch.testing.assert_close(gradient[0], doubles(-6.0, -6.0, -6.0))
    assert not found.clipped[RAGGED].any()
    # Clipped as a whole: the first response at 1.3; the second is inside still.
    found, gradient = found_and_gradient(gspo, ratios, advantages, RAGGED, clip=0.6, clip_high=0.3)
    torch.testing.assert_close(found.per_token[0].detach(), doubles(-3.9, -3.9, -3.9))
    assert gradient[0].tolist() == [0.0, 0.0, 0.0]
    assert found.clipped[RAGGED].tolist() == [True, True, True, False]


def test_gspos_own_bounds_are_those_of_the_paper():
    ratios = torch.tensor([[1 + 5e-4], [1 + 3e-4], [1 - 2e-4], [1 - 4e-4]], dtype=torch.float64)
    found, _ = found_and_gradient(gspo, ratios, torch.ones_like(ratios), ratios > 0)
    assert found.clipped.flatten().tolist() == [True, False, False, True]


# Against the papers' formulas ---------------------------------------------------------------------------------

N, T, V = 5, 7, 11
LENGTHS = torch.tensor([7, 1, 3, 5, 2])
GIVEN = torch.arange(T) < LENGTHS[:, None]


def policies(moved: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Logits [N T V] of a policy with a gradient, its and its old self's log-probabilities, tokens, advantages."""
    generator = torch.Generator().manual_seed(7)
    old = torch.randn(N, T, V, generator=generator, dtype=torch.float64)
    logits = (old + moved * torch.randn(N, T, V, generator=generator, dtype=torch.float64)).requires_grad_()
    tokens = torch.randint(V, (N, T), generator=generator)
    advantages = torch.randn(N, 1, generator=generator, dtype=torch.float64).expand(N, T) * GIVEN

    def of(logits):
        return (logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)) * GIVEN

    return logits, of(logits), of(old), tokens, advantages


def weight_by_hand(name: str, n: int, t: int, logprobs: Tensor, old: Tensor, advantage: float) -> float:
    """What multiplies A * grad log p of one token: the ratio as the paper has it, 0 where it is clipped."""
    moved = logprobs - old
    ratio = math.exp(moved[n, t])
    if name == "cispo":
        return min(ratio, 1.1)
    low, high = {"clipped": (0.2, 0.3), "gspo": (0.05, 0.08)}[name]
    if name == "gspo":
        length = int(LENGTHS[n])
        ratio = math.exp(sum(float(moved[n, s]) for s in range(length)) / length)
    gone = ratio > 1 + high if advantage > 0 else ratio < 1 - low
    return 0.0 if gone else ratio


OPTIONS = {
    "clipped": {"clip": 0.2, "clip_high": 0.3},
    "cispo": {"largest": 1.1},
    "gspo": {"clip": 0.05, "clip_high": 0.08},
}


@pytest.mark.parametrize("how", NORMALISATIONS)
@pytest.mark.parametrize("moved", [0.0, 0.5], ids=["first-step", "later-step"])
@pytest.mark.parametrize("name", registry.POLICY_LOSSES)
def test_the_gradient_is_the_formula_of_the_paper_in_float64(name, moved, how):
    logits, logprobs, old, tokens, advantages = policies(moved)
    found = find_loss(Loss(name=name, options=OPTIONS[name]))(logprobs, old, advantages, GIVEN)
    shares = token_weights(GIVEN, how, tokens=float(GIVEN.sum()), rows=float(N), length_limit=13)
    gradient = torch.autograd.grad((found.per_token * shares).sum(), logits)[0]

    expected, weights = torch.zeros(N, T, V, dtype=torch.float64), set()
    probability = logits.detach().softmax(-1)
    for n in range(N):
        length = int(LENGTHS[n])
        share = {"token": 1 / 18, "sequence": 1 / (N * length), "constant": 1 / (N * 13)}[how]
        for t in range(length):
            score = -probability[n, t]
            score[tokens[n, t]] += 1  # grad log p(y) = onehot(y) - p
            advantage = float(advantages[n, t])
            weight = weight_by_hand(name, n, t, logprobs.detach(), old, advantage)
            expected[n, t] = -share * weight * advantage * score
            weights.add(weight)
    # The shares of `token_weights` are float32 numbers.
    torch.testing.assert_close(gradient, expected, rtol=1e-7, atol=1e-14)
    if moved:  # some are clipped and some are not
        assert min(weights) == 0 or name == "cispo"
        assert len(weights) > 2
        assert name != "cispo" or 1.1 in weights
    else:
        assert weights == {1.0}


@pytest.mark.parametrize("moved", [0.0, 0.5])
def test_gspo_token_by_token_is_the_papers_objective_over_responses(moved):
    logits, logprobs, old, _, advantages = policies(moved)
    ratio = ((logprobs - old).sum(-1) / LENGTHS).exp()  # equation 7, with its gradient
    advantage = advantages[:, 0]
    objective = torch.minimum(ratio * advantage, ratio.clamp(1 - 0.05, 1 + 0.08) * advantage).mean()
    expected = torch.autograd.grad(-objective, logits, retain_graph=True)[0]
    found = gspo(logprobs, old, advantages, GIVEN, clip=0.05, clip_high=0.08)
    shares = token_weights(GIVEN, "sequence", tokens=18.0, rows=float(N), length_limit=13)
    loss = (found.per_token * shares).sum()
    # As above, shares are float32 numbers.
    torch.testing.assert_close(loss, -objective, rtol=1e-7, atol=0)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], expected, rtol=1e-7, atol=1e-14)


@pytest.mark.parametrize("name", registry.POLICY_LOSSES)
def test_a_bound_that_is_no_positive_number_is_refused(name):
    option = next(iter(OPTIONS[name]))
    with pytest.raises(
        InputError, match=f"policy loss '{name}': option '{option}' is -0.1: .*greater than 0"
    ):
        find_loss(Loss(name=name, options={option: -0.1}))
