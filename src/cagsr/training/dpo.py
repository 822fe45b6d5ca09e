"""Direct preference optimisation (DPO), for causal models and encoder-decoders alike."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from random import Random

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.functional import logsigmoid

from cagsr.data.preferences import Pair
from cagsr.distributed.process_group import World
from cagsr.errors import InputError, NumericsError
from cagsr.models.policy import Policy
from cagsr.models.reference import Reference
from cagsr.runs.resumable_loop import Continuation
from cagsr.training.sft import prepared, shuffled_batches

__all__ = ["DirectPreference", "prefer", "preference_loss"]


@dataclass(frozen=True)
class DirectPreference:
    """Settings of DPO, for `prefer`.

    beta                 how strongly the policy is held to the reference; 0.1 is usual
    max_response_tokens  a longer response is cut there
    """

    beta: float = 0.1
    steps: int = 100
    batch_size: int = 16
    learning_rate: float = 1e-4
    schedule: str = "linear"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    max_response_tokens: int = 128
    max_grad_norm: float = 1.0
    seed: int = 0


def preference_loss(logprobs: Tensor, ref_logprobs: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """DPO loss: [n 2], [n 2] log-probabilities of chosen and rejected responses -> loss [n], log-ratio margin [n].

    margin = (log p(chosen) - log q(chosen)) - (log p(rejected) - log q(rejected)), p the policy, q the reference,
    in nats a response; loss = -log sigmoid(beta * margin), at least 0, log 2 before training.

    Source: DPO, arXiv 2305.18290, equation 7.
    """
    ratios = logprobs - ref_logprobs
    margin = ratios[:, 0] - ratios[:, 1]
    return -logsigmoid(beta * margin), margin


def prefer(
    policy: Policy,
    reference: Reference,
    pairs: Sequence[Pair],
    settings: DirectPreference,
    accelerator: Accelerator,
    report: Callable[..., None] = lambda step, loss, margin, accuracy: None,
    continuation: Continuation | None = None,
) -> None:
    """Train ``policy`` by DPO to prefer the chosen response of each pair, relative to ``reference``.

    Uses the policy's own scoring pass; dropout is off. ``report(step, loss, margin=, accuracy=)`` is called after
    every step, with means over its pairs before the step: loss and margin as of `preference_loss`, accuracy the
    share of pairs whose margin is above 0. With a ``continuation`` it begins where that says, and may be left by its
    StoppedError.

    Raises InputError for no pairs, or a batch that the processes cannot share evenly; NumericsError before the
    optimizer step for a loss or gradient that is not finite.
    """
    world = World(accelerator)
    _demand_batches(pairs, settings.batch_size, world.size)
    network, optimizer, scheduler = prepared(policy, settings, accelerator)
    lengths = [len(pair.chosen) + len(pair.rejected) for pair in pairs]
    order = shuffled_batches(lengths, settings.batch_size, Random(settings.seed))
    done = continuation.restore(scheduler, settings.steps) if continuation else 0
    for step, rows in enumerate(islice(order, done, settings.steps), start=done + 1):
        mine = [pairs[row] for row in world.share(rows)]
        rollout = policy.given(
            [pair.prompt for pair in mine],
            [text for pair in mine for text in (pair.chosen, pair.rejected)],
            settings.max_response_tokens,
        )
        with continuation.step(step, settings.steps) if continuation else nullcontext():
            known = reference.logprobs(rollout).sum(-1).view(-1, 2)
            own = network(rollout).logprobs.sum(-1).view(-1, 2)
            loss, margin = preference_loss(own, known, settings.beta)
            accelerator.backward(loss.sum() / settings.batch_size * world.size)
        norm = accelerator.clip_grad_norm_(network.parameters(), settings.max_grad_norm)
        sums = torch.stack([loss.detach().sum(), margin.detach().sum(), (margin > 0).sum()])
        mean_loss, mean_margin, accuracy = (world.total(sums) / settings.batch_size).tolist()
        _check_finite(step, mean_loss, float(torch.as_tensor(norm)))
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        report(step, mean_loss, margin=mean_margin, accuracy=accuracy)
        if continuation:
            continuation.after(step, settings.steps)


def _demand_batches(pairs: Sequence[Pair], size: int, processes: int) -> None:
    if not pairs:
        raise InputError("direct preference optimisation needs pairs, and there are none")
    if size % processes:
        raise InputError(f"batch_size ({size}) must be a multiple of the number of processes ({processes})")


def _check_finite(step: int, loss: float, norm: float) -> None:
    """Raise NumericsError for a loss or norm that is not finite; every process sees the same sums, so all stop."""
    for name, value in (("loss", loss), ("gradient norm", norm)):
        if not math.isfinite(value):
            raise NumericsError(
                f"step {step}: the {name} is {value}; stopped before the optimizer step. "
                "Lower the learning rate or beta, or train in float32."
            )
