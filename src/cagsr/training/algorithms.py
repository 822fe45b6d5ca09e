"""Reinforcement-learning algorithm: the advantage estimator and the policy loss that the settings name, joined."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cagsr.config import registry
from cagsr.config.schema import AlgorithmSettings
from cagsr.distributed.process_group import World
from cagsr.models.predictions import Scored
from cagsr.training import kl
from cagsr.training.estimators.gae import token_rewards, whiten
from cagsr.training.estimators.leave_one_out import leave_one_out
from cagsr.training.importance import importance_weight
from cagsr.training.losses import clipped_value_loss
from cagsr.training.policy_losses import find_loss
from cagsr.types import TrainBatch

__all__ = ["Algorithm"]


class Algorithm:
    """The estimator, loss and KL penalty of ``algorithm``. Raises InputError for an unknown loss or option.

    ``kl_placement``: "reward" subtracts the coefficient times k1 from the reward of every token, as the CAGSR
    paper's PPO does; "loss" adds the coefficient times k2 to the loss, or k3 as GRPO does (see `training.kl`).
    ``normalisation``: how the loss is averaged (see `losses.token_weights`).
    """

    def __init__(self, settings: AlgorithmSettings):
        self.settings = settings
        self.needs_critic = settings.name == "ppo"
        self.kl_placement = "reward" if settings.kl_in_reward else "loss"
        self.normalisation = settings.loss_normalisation
        if self.normalisation == "auto":
            self.normalisation = "constant" if settings.name == "dr-grpo" else "token"
        self._kl_estimate = {"k2": kl.k2, "k3": kl.k3}[settings.kl_estimate]
        self._estimator = registry.load(registry.ESTIMATORS[settings.name])
        self._policy_loss = find_loss(settings.loss)

    @property
    def needs_old(self) -> bool:
        """Whether a step must know the sampling policy's log-probabilities before its update.

        With a single optimizer step a rollout they are those of the pass that is differentiated, and the ratio is 1.
        `Step.collect` wants them too where another engine sampled: it is held to them before anything is learnt.
        """
        several = self.settings.epochs * self.settings.minibatches > 1
        return several or self.needs_critic or self.kl_placement == "reward"

    def estimate(
        self, reward_N: Tensor, parts: Sequence[TrainBatch], kl_coefficient: float, world: World
    ) -> list[TrainBatch]:
        """Compute advantages (and returns) of the parts of a rollout; ``reward_N`` is this process's.

        The group, the batch and the whitening are those of all processes together.
        """
        beta = kl_coefficient if self.kl_placement == "reward" else 0.0
        penalties = [
            torch.zeros_like(part.ref_logprobs)
            if part.old_logprobs is None
            else beta * kl.k1(part.old_logprobs, part.ref_logprobs)
            for part in parts
        ]
        sizes, group_size = [len(part.rollout.responses) for part in parts], parts[0].rollout.group_size
        if self.needs_critic:
            if self.settings.value_baseline == "group" and group_size > 1:
                reward_N = world.mine(leave_one_out(world.gather(reward_N), group_size))
            return self._with_gae(reward_N.split(sizes), penalties, parts, world)
        spent = torch.cat([penalty.sum(-1) for penalty in penalties])
        everywhere = self._estimator(world.gather(reward_N - spent), group_size)
        shared = world.mine(everywhere).split(sizes)
        return [
            part.with_advantages(advantage_N[:, None] * part.rollout.response_mask)
            for part, advantage_N in zip(parts, shared, strict=True)
        ]

    def _with_gae(
        self, rewards: Sequence[Tensor], penalties: list[Tensor], parts: Sequence[TrainBatch], world: World
    ) -> list[TrainBatch]:
        raw, returns, masks = [], [], []
        for reward_N, penalty, part in zip(rewards, penalties, parts, strict=True):
            assert part.values is not None, "PPO needs a critic: build the policy with critic=True"
            mask = part.rollout.response_mask
            per_token = token_rewards(reward_N, penalty, mask)
            advantage, target = self._estimator(
                per_token, part.values, mask, discount=self.settings.gamma, trace=self.settings.gae_lambda
            )
            raw.append(advantage.flatten())
            returns.append(target)
            masks.append(mask)
        flat = whiten(torch.cat(raw), torch.cat([mask.flatten() for mask in masks]), world.total)
        shaped = flat.split([mask.numel() for mask in masks])
        return [
            part.with_advantages(advantage.view(mask.shape), target)
            for part, advantage, target, mask in zip(parts, shaped, returns, masks, strict=True)
        ]

    def token_losses(
        self, scored: Scored, batch: TrainBatch, kl_coefficient: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss [N T] of each token, and its terms, for the metrics.

        Where another engine drew the tokens, the terms that are right on average over the policy's own tokens are
        weighted by `importance_weight`: the policy's loss and the KL. Entropy and values are not of one token.
        """
        assert batch.advantages is not None, "estimate() comes before a loss"
        settings, mask = self.settings, batch.rollout.response_mask
        old = scored.logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
        per_token, clipped = self._policy_loss(scored.logprobs, old, batch.advantages, mask)
        weight, cut = 1.0, {}
        if (sampled := batch.rollout.sampled_logprobs) is not None:
            weight, beyond = importance_weight(
                old, sampled, mask, settings.importance, settings.importance_limit
            )
            cut = {"importance_cut": beyond.float()}
        loss = weight * per_token
        parts = {"policy_loss": loss.detach(), "clipped": clipped.float(), **cut}
        if self.kl_placement == "loss" and kl_coefficient:
            loss = loss + kl_coefficient * weight * self._kl_estimate(scored.logprobs, batch.ref_logprobs)
        if settings.entropy_coefficient:
            loss = loss - settings.entropy_coefficient * scored.entropy
        if scored.values is not None and batch.values is not None and batch.returns is not None:
            value = clipped_value_loss(scored.values, batch.values, batch.returns, settings.value_clip)
            parts["value_loss"] = value.detach()
            loss = loss + settings.value_coefficient * value
        return loss, parts
