"""Supervised fine-tuning on references, which makes the base model of reinforcement learning."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from random import Random
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from transformers import get_scheduler

from cagsr.config.schema import Sft
from cagsr.distributed.process_group import World
from cagsr.errors import InputError, NumericsError
from cagsr.models.policy import Policy
from cagsr.runs.resumable_loop import Continuation
from cagsr.types import Prompt

__all__ = ["fine_tune", "prepared", "shuffled_batches"]

POOL = 32  # batches that are filled together, so that rows of like length share one


def fine_tune(
    policy: Policy,
    prompts: Sequence[Prompt],
    references: list[str],
    settings: Sft,
    accelerator: Accelerator,
    report: Callable[[int, float], None] = lambda step, loss: None,
    continuation: Continuation | None = None,
    *,
    seed: int = 0,
    finished: Sequence[bool] | None = None,
) -> None:
    """Train ``policy`` to maximise the mean log-probability of reference tokens, the end-of-sequence token included.

    ``finished`` is False for a reference that was cut off, which has no end; None: all ended by themselves.

    Uses the policy's own scoring pass, so prompts and responses are put together exactly as they are later in
    reinforcement learning. ``report(step, loss)`` is called after every step; the loss is in nats per token.
    With a ``continuation`` it begins where that says, and may be left by its StoppedError.

    Raises InputError for a batch that the processes cannot share evenly, NumericsError before the optimizer step
    for a loss or gradient that is not finite.
    """
    world = World(accelerator)
    if settings.batch_size % world.size:
        raise InputError(
            f"sft.batch_size ({settings.batch_size}) must be a multiple of the number of processes ({world.size})"
        )
    network, optimizer, scheduler = prepared(policy, settings, accelerator)
    batches = shuffled_batches([len(text) for text in references], settings.batch_size, Random(seed))
    done = continuation.restore(scheduler, settings.steps) if continuation else 0
    for step, rows in enumerate(islice(batches, done, settings.steps), start=done):
        mine = world.share(rows)
        with continuation.step(step + 1, settings.steps) if continuation else nullcontext():
            texts = [references[row] for row in mine]
            ended = None if finished is None else [finished[row] for row in mine]
            batch = policy.given([prompts[row] for row in mine], texts, settings.max_reference_tokens, ended)
            tokens = float(world.total(batch.response_mask.sum()))
            loss = -network(batch).logprobs.sum() / tokens
            accelerator.backward(loss * world.size)
        norm = float(torch.as_tensor(accelerator.clip_grad_norm_(network.parameters(), 1.0)))
        mean = float(world.total(loss.detach()))
        _demand_finite(step + 1, mean, norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        report(step + 1, mean)
        if continuation:
            continuation.after(step + 1, settings.steps)


def _demand_finite(step: int, loss: float, norm: float) -> None:
    # All processes see the same sums, so all of them stop here or none does.
    for name, value in (("loss", loss), ("gradient norm", norm)):
        if not math.isfinite(value):
            raise NumericsError(
                f"step {step}: the {name} is {value}; stopped before the optimizer step. "
                "Lower sft.learning_rate, or train in float32."
            )


class Rates(Protocol):
    """Protocol of the settings of a supervised optimizer: steps, learning rate, weight decay and schedule."""

    @property
    def steps(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def schedule(self) -> str: ...
    @property
    def warmup_steps(self) -> int: ...


def prepared(policy: Policy, rates: Rates, accelerator: Accelerator) -> tuple[Any, Any, Any]:
    """Policy and AdamW optimizer as Accelerate wraps them, and the learning-rate schedule."""
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer: Any = torch.optim.AdamW(trained, lr=rates.learning_rate, weight_decay=rates.weight_decay)
    network, optimizer = accelerator.prepare(policy, optimizer)
    scheduler = get_scheduler(
        rates.schedule, optimizer, num_warmup_steps=rates.warmup_steps, num_training_steps=rates.steps
    )
    return network, optimizer, scheduler


def shuffled_batches(lengths: list[int], size: int, random: Random) -> Iterator[list[int]]:
    """Row numbers in batches of ``size``, endlessly: one reshuffled pass over all rows after another.

    A batch holds rows of like length: of natural text more than half of a random batch would be padding.
    """
    order: list[int] = []
    while True:
        while len(order) < size:
            order += random.sample(range(len(lengths)), len(lengths))
        count = min(POOL, len(order) // size)
        pool, order = sorted(order[: size * count], key=lengths.__getitem__), order[size * count :]
        for start in random.sample(range(0, len(pool), size), count):
            yield pool[start : start + size]
