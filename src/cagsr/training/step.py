"""One training step, from prompts to an update of the policy: the file to read first.

collect   prompts -> sampled responses -> the observer's attention -> signals -> reward -> advantages
update    epochs over those responses: forward, loss, backward, clip, optimizer step

The pass that gives the reference's log-probabilities gives the attention too, and a policy that observes itself reads
it while it writes; only a signal that needs further passes (a knockout of parts of the prompt) costs more. Large
tensors (attention, logits) live for one part of the rollout only.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from cagsr.config.schema import Sampling
from cagsr.distributed.process_group import World
from cagsr.errors import NumericsError
from cagsr.models.casts import casts_kept
from cagsr.models.policy import Policy
from cagsr.models.predictions import Scored
from cagsr.models.reference import Reference
from cagsr.models.sampling import Sampler
from cagsr.rewards.reward import Reward
from cagsr.rewards.salience import evidence_of
from cagsr.training import kl
from cagsr.training.algorithms import Algorithm
from cagsr.training.attention_summary import Look, look
from cagsr.training.importance import importance_sums
from cagsr.training.losses import token_weights
from cagsr.types import Observation, Prompt, Rollout, Scores, TrainBatch, Wanted

__all__ = ["Collected", "Progress", "Step"]


@dataclass(frozen=True)
class Collected:
    """Experience of one step: the whole rollout with its scores, and the same in parts, ready to train on.

    ``attended`` holds the attention summary of each of the first ``batches``, those that are shown; the attention
    itself is freed.
    """

    rollout: Rollout
    scores: Scores
    batches: list[TrainBatch]
    attended: list[Look]


@dataclass
class Progress:
    """Progress of `Step.update`: optimizer steps taken, and their share of the means that it will return."""

    updates: int = 0
    means: dict[str, float] = field(default_factory=dict)


def _go_on(progress: Progress) -> None:
    pass


@dataclass
class Step:
    """A training step over one policy: `collect` experience, then `update` the policy on it."""

    policy: Policy  # what is trained
    network: nn.Module  # the policy as Accelerate wrapped it: the differentiable pass
    reference: Reference  # what the KL penalty is measured against
    observer: Reference | Policy  # whose attention is read
    reward: Reward
    salience: Callable[[Rollout], Tensor]
    algorithm: Algorithm
    sampling: Sampling
    kl_controller: kl.KLController
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    accelerator: Accelerator
    groups_per_pass: int
    max_grad_norm: float
    sampler: Sampler | None = None  # what writes responses in the policy's place; None: the policy
    shown: float = (
        math.inf
    )  # of how many prompts a step's attention is summarised for display, the first ones

    def __post_init__(self):
        self.world = World(self.accelerator)

    @property
    def networks(self) -> list[nn.Module]:
        """What may be in shards: the policy, and the reference where it is a copy."""
        return [self.policy, *([] if self.reference.copy is None else [self.reference.copy])]

    @torch.no_grad()
    def collect(self, prompts: list[Prompt], seed: int) -> Collected:
        """Sample responses to the prompts, observe and reward them, and estimate advantages; no gradients."""
        with self.accelerator.autocast(), casts_kept(self.policy.model):
            rollout, seen = self._sample(prompts, seed)
        return self.experience(rollout, seen)

    @torch.no_grad()
    def experience(self, rollout: Rollout, seen: Observation | None = None) -> Collected:
        """`collect` of responses that were sampled already; ``seen`` is what the observer saw of them meanwhile."""
        held = self.sampler is not None and self.sampler.held_to_policy
        needs_old = self.algorithm.needs_old or held
        parts, measured, attended = [], [], []
        with self.accelerator.autocast():
            for start in range(0, len(rollout.prompts), self.groups_per_pass):
                stop = min(start + self.groups_per_pass, len(rollout.prompts))
                part = rollout.groups(start, stop)
                if seen is not None:
                    observation = seen.of_groups(rollout, start, stop)
                else:
                    observation = self.observer.observe(part, self._wanted(start))
                watched = self.observer is self.reference
                ref_logprobs = observation.logprobs if watched else self.reference.logprobs(part)
                evidence = evidence_of(part, observation, self.salience, self.observer)
                measured.append(self.reward.measure(evidence))
                if start < self.shown:
                    attended.append(look(evidence))
                batch = TrainBatch(part, ref_logprobs)
                parts.append(self._with_old(batch) if needs_old else batch)
        signals = torch.cat(measured)
        everywhere = self.world.gather(signals)
        reward = self.world.mine(self.reward.combine(everywhere, rollout.group_size))
        weighted = self.world.mine(self.reward.weighted(everywhere, rollout.group_size))
        batches = self.algorithm.estimate(reward, parts, self.kl_controller.coefficient, self.world)
        return Collected(rollout, Scores(self.reward.names, signals, reward, weighted), batches, attended)

    def _wanted(self, start: int) -> Wanted:
        """What to read of the prompts from number ``start`` on: what the reward does, and what is shown."""
        wanted = self.reward.wanted(self.salience)
        return replace(wanted, by_token=True) if start < self.shown else wanted

    def _sample(self, prompts: list[Prompt], seed: int) -> tuple[Rollout, Observation | None]:
        """The rollout; and what the observer saw of it, where it wrote it and could read meanwhile."""
        # Also where the rollout has more than one part, though it is then held whole: it takes 4 bytes for each prompt
        # column and response token (or piece), less than what decoding holds of that token in every layer, and in
        # measurements less than the update of a single part. A pass over each part would take a quarter more time.
        if self.sampler is None and self.observer is self.policy:
            return self.policy.sample_observed(prompts, self.sampling, seed, self._wanted(0))
        return (self.sampler or self.policy).sample(prompts, self.sampling, seed), None

    def _with_old(self, batch: TrainBatch) -> TrainBatch:
        """The batch with old log-probabilities, bit for bit those that `update` computes before its first step.

        Nothing is differentiated; gradients are on because T5's position bias wants one, and attention then runs in
        another kernel.
        """
        with self._training(), torch.enable_grad(), self.accelerator.no_sync(self.network):
            scored = self.network(batch.rollout)
        values = None if scored.values is None else scored.values.detach()
        logprobs, entropy = scored.logprobs.detach(), scored.entropy.detach()
        return replace(batch, old_logprobs=logprobs, entropy=entropy, values=values)

    def update(
        self,
        batches: Sequence[TrainBatch],
        progress: Progress | None = None,
        after: Callable[[Progress], None] = _go_on,
    ) -> dict[str, float]:
        """Train on collected parts; returns the means, over tokens and updates, of the terms of the loss.

        Where `collect` left that to the update (see `Algorithm.needs_old`), also kl, kl_response, entropy, and where
        another sampler wrote importance and mismatch, as of `step_metrics.measure`.

        ``after`` is called between two optimizer steps, and may raise to leave there; a later call with the same
        batches and that ``progress`` takes the rest.
        """
        progress = progress or Progress()
        size = math.ceil(len(batches) / self.algorithm.settings.minibatches)
        starts = [*range(0, len(batches), size)] * self.algorithm.settings.epochs
        with self._training():
            for start in starts[progress.updates :]:
                for name, value in self._optimizer_step(batches[start : start + size]).items():
                    progress.means[name] = progress.means.get(name, 0.0) + value / len(starts)
                progress.updates += 1
                if progress.updates < len(starts):
                    after(progress)
        return progress.means

    @contextmanager
    def _training(self) -> Iterator[None]:
        # transformers recomputes activations in training mode only; dropout is off in either mode.
        self.policy.train(getattr(self.policy.model, "is_activation_checkpointing", False))
        try:
            yield
        finally:
            self.policy.eval()

    def _optimizer_step(self, minibatch: Sequence[TrainBatch]) -> dict[str, float]:
        masks = [batch.rollout.response_mask for batch in minibatch]
        local = torch.tensor([sum(int(mask.sum()) for mask in masks), sum(len(mask) for mask in masks)])
        tokens, rows = self.world.total(local.double()).tolist()
        sums: dict[str, Tensor] = {}
        bad: list[tuple[TrainBatch, Tensor]] = []
        for position, batch in enumerate(minibatch):
            last = position == len(minibatch) - 1
            with self.accelerator.no_sync(self.network) if not last else nullcontext():
                loss, parts = self._loss(batch, tokens, rows, bad)
                # Data-parallel training averages gradients over processes; our weights already sum to 1 over all.
                self.accelerator.backward(loss * self.world.size)
            for name, value in {"loss": loss.detach(), **parts}.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value
        clipped = self.accelerator.clip_grad_norm_(self.network.parameters(), self.max_grad_norm)
        norm = float(torch.as_tensor(clipped))
        means = {name: float(self.world.total(value)) for name, value in sums.items()}
        self._check_finite(means["loss"], norm, bad)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        return {**means, "grad_norm": norm}

    def _loss(
        self, batch: TrainBatch, tokens: float, rows: float, bad: list[tuple[TrainBatch, Tensor]]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a part and what it consists of; rows that are not finite are added to ``bad``, unread."""
        scored = cast(Scored, self.network(batch.rollout))
        per_token, parts = self.algorithm.token_losses(scored, batch, self.kl_controller.coefficient)
        bad.append((batch, ~per_token.detach().isfinite().all(-1)))
        weights = token_weights(
            batch.rollout.response_mask,
            self.algorithm.normalisation,
            tokens=tokens,
            rows=rows,
            length_limit=self.sampling.max_new_tokens,
        )
        means = {name: (part * weights).sum() for name, part in parts.items()}
        if batch.old_logprobs is None:  # this pass is of the policy that sampled
            measured = kl.sums(scored.logprobs.detach(), batch.ref_logprobs, scored.entropy.detach())
            means |= {
                name: value / (rows if name == "kl_response" else tokens) for name, value in measured.items()
            }
            sampled = batch.rollout.sampled_logprobs
            if sampled is not None:
                given = (scored.logprobs.detach(), sampled, batch.rollout.response_mask)
                means |= {name: value / tokens for name, value in importance_sums(*given).items()}
        return (per_token * weights).sum(), means

    def _check_finite(self, loss: float, norm: float, bad: Sequence[tuple[TrainBatch, Tensor]]) -> None:
        """Raise NumericsError for a loss or norm that is not finite; every process sees the same sums, so all stop."""
        for name, value in (("loss", loss), ("gradient norm", norm)):
            if not math.isfinite(value):
                raise NumericsError(
                    f"the {name} is {value}{_first(bad)}; stopped before the optimizer step, the weights are those of "
                    "the last good step. Lower train.learning_rate or algorithm.kl_coefficient, or train in float32."
                )


def _first(bad: Sequence[tuple[TrainBatch, Tensor]]) -> str:
    for batch, rows in bad:
        for row in rows.nonzero().flatten().tolist():
            index = batch.rollout.prompts[row // batch.rollout.group_size].index
            return f" (first in a response to the prompt of index {index})"
    return ""
