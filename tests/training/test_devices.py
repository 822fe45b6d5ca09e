"""A device without float64 (Apple's MPS) gets none: what is summed in it is summed on the CPU."""

import pytest
import torch
from torch import Tensor

import tiny
from cagsr.config.schema import AlgorithmSettings, Term
from cagsr.models import sampling
from cagsr.rewards.reward import Reward
from cagsr.training.algorithms import Algorithm
from cagsr.training.estimators.gae import whiten
from cagsr.training.estimators.group import group_relative
from cagsr.training.step_metrics import measure, shuffled_share


class Single(Tensor):
    """A tensor as on a device without float64; ``cpu()`` leads away from it."""

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), named=None):
        if function is Tensor.cpu:
            return arguments[0].as_subclass(Tensor)
        found = super().__torch_function__(function, types, arguments, named or {})
        if isinstance(found, cls) and found.dtype == torch.float64:
            raise RuntimeError("this device has no float64")
        return found


def single(tensor):
    return tensor.as_subclass(Single)


def test_the_stand_in_refuses_float64():
    numbers = single(torch.ones(3))
    with pytest.raises(RuntimeError, match="no float64"):
        numbers.double()
    with pytest.raises(RuntimeError, match="no float64"):
        numbers + torch.ones(3, dtype=torch.float64)
    assert type(numbers.cpu().double()) is Tensor
    assert type(numbers.cpu().double().to(numbers)) is Single


def test_advantages_need_no_float64_on_the_device():
    reward = torch.tensor([0.3, -1.0, 2.0, 0.7, 0.1, 5.0])
    found = group_relative(single(reward), 3)
    assert type(found) is Single
    assert torch.equal(found.cpu(), group_relative(reward, 3))
    per_token, mask = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), torch.ones(3, 5).bool()
    found = whiten(single(per_token), single(mask), lambda tensor: tensor)
    assert type(found) is Single
    assert torch.equal(found.cpu(), whiten(per_token, mask, lambda tensor: tensor))


@pytest.mark.parametrize("standardise", ["group", "batch", "none"])
def test_the_reward_needs_no_float64_on_the_device(standardise):
    reward = Reward(
        [
            Term("length", weight=0.3, standardise=standardise),
            Term("repetition", weight=2.0, standardise="group"),
        ]
    )
    signals = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(reward.combine(single(signals), 3).cpu(), reward.combine(signals, 3))
    assert torch.equal(reward.spread(single(signals), 3), reward.spread(signals, 3))


def test_drawing_a_token_needs_no_float64_on_the_device(monkeypatch):
    logits = torch.randn(7, 11, generator=torch.Generator().manual_seed(0))
    uniform = torch.rand(7, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    shown, settings = torch.zeros(7, 1).long(), sampling.Sampling(temperature=0.7, top_p=0.9, top_k=5)
    expected = sampling.InverseTransform(settings, uniform)(shown, logits)
    monkeypatch.setattr(sampling, "WITHOUT_FLOAT64", "cpu")
    found = sampling.InverseTransform(settings, uniform)(shown, single(logits))
    assert type(found) is Single
    assert torch.equal(found.cpu(), expected)


def test_the_numbers_of_a_step_need_no_float64_on_the_device():
    policy = tiny.policy("llama", extra_eos=20, critic=True)
    step = tiny.make_step(policy, algorithm=Algorithm(AlgorithmSettings(name="ppo", kl_placement="reward")))
    collected = step.collect(tiny.prompts(policy), seed=3)
    expected = measure(collected, step.world), shuffled_share(step, collected)
    moved = [collected.rollout, collected.scores, *collected.batches]
    for part in moved:
        for name, value in vars(part).items():
            if isinstance(value, Tensor):
                object.__setattr__(part, name, single(value))
    assert type(collected.batches[0].entropy) is type(collected.scores.reward) is Single
    assert measure(collected, step.world) == expected[0]
    assert shuffled_share(step, collected) == expected[1]
