"""Direct preference optimisation: its loss by hand, the direction of its gradient, and what stops it."""

import math

import pytest
import torch
from accelerate import Accelerator

import tiny
from cagsr.data.preferences import Pair
from cagsr.errors import InputError, NumericsError
from cagsr.models.reference import Reference
from cagsr.training.dpo import DirectPreference, prefer, preference_loss

ARCHITECTURES = ["t5", "bart", "llama"]


def pairs(policy, count: int = 5) -> list[Pair]:
    def text(*ids: int) -> str:
        return " ".join(policy.tokenizer.convert_ids_to_tokens(ids))

    prompts = tiny.prompts(policy, [3, 7, 2, 5, 11][:count])
    return [Pair(p, text(20 + n, 31, 32), text(60 + n, 71)) for n, p in enumerate(prompts)]


def test_the_loss_is_that_of_the_margin_of_log_ratios():
    logprobs = torch.tensor([[-3.0, -7.0], [-5.0, -2.0], [-1.0, -1.0]])
    known = torch.tensor([[-5.0, -6.0], [-5.0, -2.0], [0.0, -5.0]])
    loss, margin = preference_loss(logprobs, known, beta=0.5)
    # (2 - -1) = 3, (0 - 0) = 0, (-1 - 4) = -5
    assert margin.tolist() == [3.0, 0.0, -5.0]
    expected = [math.log1p(math.exp(-1.5)), math.log(2), math.log1p(math.exp(2.5))]
    assert loss.tolist() == pytest.approx(expected)


def test_the_gradient_raises_the_chosen_and_lowers_the_rejected():
    logprobs = torch.zeros(3, 2, requires_grad=True)
    loss, _ = preference_loss(logprobs, torch.zeros(3, 2), beta=0.2)
    loss.sum().backward()
    # -beta * sigmoid(0) for the chosen, its opposite for the rejected
    torch.testing.assert_close(logprobs.grad, torch.tensor([[-0.1, 0.1]] * 3))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_training_starts_at_log_two_and_widens_the_margin(name):
    policy = tiny.policy(name)
    reference, given, seen = Reference(policy), pairs(policy), []

    def report(step, loss, **numbers):
        seen.append({"step": step, "loss": loss, **numbers})

    settings = DirectPreference(steps=23, batch_size=5, learning_rate=3e-3)
    prefer(policy, reference, given, settings, Accelerator(cpu=True), report)
    assert (seen[0]["step"], seen[0]["loss"]) == (1, pytest.approx(math.log(2), abs=1e-5))
    assert seen[0]["margin"] == pytest.approx(0.0, abs=1e-4)
    assert seen[-1]["step"] == 23
    assert seen[-1]["loss"] < 0.5
    assert seen[-1]["accuracy"] == 1.0
    rollout = policy.given([p.prompt for p in given], [t for p in given for t in (p.chosen, p.rejected)], 128)
    ratios = (policy.logprobs(rollout) - reference.logprobs(rollout)).sum(-1).view(-1, 2)
    assert (ratios[:, 0] > ratios[:, 1]).all()


def test_the_reference_is_not_moved():
    policy = tiny.policy("llama")
    reference, given = Reference(policy), pairs(policy)
    rollout = policy.given([p.prompt for p in given], [p.chosen for p in given], 128)
    before = reference.logprobs(rollout)
    prefer(policy, reference, given, DirectPreference(steps=3, batch_size=5), Accelerator(cpu=True))
    assert torch.equal(reference.logprobs(rollout), before)
    assert not torch.equal(policy.logprobs(rollout), before)


def test_no_pairs_and_a_batch_that_processes_cannot_share_are_refused():
    policy = tiny.policy("llama")
    with pytest.raises(InputError, match="there are none"):
        prefer(policy, Reference(policy), [], DirectPreference(), Accelerator(cpu=True))

    class Processes(Accelerator):
        num_processes = 3

    with pytest.raises(InputError, match=r"batch_size \(7\) must be a multiple of .*\(3\)"):
        prefer(policy, Reference(policy), pairs(policy), DirectPreference(batch_size=7), Processes(cpu=True))


@pytest.mark.parametrize("place", ["loss", "gradient norm"])
def test_trap_22_a_loss_or_gradient_that_is_not_finite_stops_before_the_optimizer_step(place):
    policy = tiny.policy("llama")
    reference, weights, steps = Reference(policy), [], []

    def report(step, loss, **numbers):
        steps.append(step)
        weights[:] = [tiny.weights_of(policy)]
        if step == 2 and place == "loss":
            policy.model.lm_head.register_forward_hook(lambda module, inputs, output: output * torch.nan)
        if step == 2 and place == "gradient norm":
            policy.model.lm_head.weight.register_hook(lambda gradient: gradient * torch.inf)

    settings = DirectPreference(steps=5, batch_size=2)
    with pytest.raises(NumericsError, match=rf"step 3: the {place} is (nan|inf)"):
        prefer(policy, reference, pairs(policy), settings, Accelerator(cpu=True), report)
    assert steps == [1, 2]
    for key, value in tiny.weights_of(policy).items():
        assert torch.equal(value, weights[0][key]), key
