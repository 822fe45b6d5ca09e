"""A stop that can wait no longer throws away the step of a supervised loop, which goes on to the same bits."""

import pytest
import torch
from accelerate import Accelerator

import tiny
from cagsr.config.schema import Sft
from cagsr.data.preferences import Pair
from cagsr.errors import StoppedError
from cagsr.io.shutdown import Stops
from cagsr.models.reference import Reference
from cagsr.runs.checkpoint import Checkpoints
from cagsr.runs.resumable_loop import Continuation
from cagsr.training.dpo import DirectPreference, prefer
from cagsr.training.sft import fine_tune


class Urgent(Stops):
    """A stop that can wait no longer when the n-th module of a network is about to run; None: never, it counts them."""

    def __init__(self, at=None):
        super().__init__()
        self.at, self.looks = at, 0

    def overdue(self):
        self.looks += 1
        return 15 if self.looks == self.at else 0


def trained(kind, directory, stops, resume=False):
    """The weights and the losses after four steps."""
    policy, losses = tiny.policy("llama"), {}
    accelerator = Accelerator(cpu=True)
    checkpoints = Checkpoints(accelerator, directory / "checkpoints", "run0")
    continuation = Continuation(checkpoints, stops, save_every=2, resume=resume, tell=lambda step: None)
    texts = [" ".join(policy.tokenizer.convert_ids_to_tokens([20 + n, 31, 32])) for n in range(5)]
    prompts = tiny.prompts(policy, (3, 7, 2, 5, 11))

    def report(step, loss, **numbers):
        losses[step] = loss

    given = (accelerator, report, continuation)
    try:
        if kind == "sft":
            fine_tune(policy, prompts, texts, Sft(steps=4, batch_size=2, learning_rate=1e-2), *given)
        else:
            pairs = [Pair(p, a, b) for p, a, b in zip(prompts, texts, texts[1:] + texts[:1], strict=True)]
            settings = DirectPreference(steps=4, batch_size=2, learning_rate=1e-2)
            prefer(policy, Reference(policy), pairs, settings, *given)
    finally:
        stops.losses = losses
    return tiny.weights_of(policy), losses


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_a_step_that_is_thrown_away_is_done_again(kind, tmp_path):
    counter = Urgent()
    weights, losses = trained(kind, tmp_path / "whole", counter)
    for at in range(1, counter.looks, counter.looks // 5):
        stops = Urgent(at)
        with pytest.raises(StoppedError, match=r"stopped by SIGTERM in step \d of 4; everything is saved"):
            trained(kind, tmp_path / str(at), stops)
        again, rest = trained(kind, tmp_path / str(at), Stops(), resume=True)
        assert stops.losses | rest == losses
        assert not stops.losses.keys() & rest.keys()
        for key, value in weights.items():
            assert torch.equal(again[key], value), (at, key)
