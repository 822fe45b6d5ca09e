"""Dynamic sampling: prompts whose candidates all have the same reward are replaced by others, from which is learnt.

Source: DAPO, arXiv 2503.14476, section 3.2. Differs: a round samples as many prompts as the step has, each a spare for
one place in it, and there are at most ``train.replacements`` rounds; DAPO samples until the batch is full. So a step's
experience is a function of the seed and the step alone, however many processes there are, and can be resumed.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cagsr.config.schema import Train
from cagsr.models.policy import Policy
from cagsr.training.estimators.group import without_spread
from cagsr.training.prompt_order import prompts_for, step_seed
from cagsr.training.step import Collected, Step
from cagsr.types import Prompt, Rollout

__all__ = ["collect_step", "prompts_of_rounds"]


def prompts_of_rounds(prompts: Sequence[Prompt], number: int, schedule: Train) -> list[list[Prompt]]:
    """The prompts of step ``number``, then those of each round that may replace some of them."""
    size, seed = schedule.prompts_per_step, schedule.seed
    spares = [f"{seed} replacement {turn}" for turn in range(1, schedule.replacements + 1)]
    return [prompts_for(prompts, number, size, of) for of in (seed, *spares)]


def collect_step(
    step: Step, prompts: Sequence[Prompt], number: int, schedule: Train
) -> tuple[Collected, dict[str, float]]:
    """Collect the experience of step ``number``, and with replacements two metrics of it, over all processes.

    replaced  prompts that gave way to others;  flat: prompts whose candidates have the same reward even so
    """
    first, *spares = prompts_of_rounds(prompts, number, schedule)
    world, seed = step.world, step_seed(schedule.seed, number)
    collected = step.collect(world.share(first), seed)
    if not spares:
        return collected, {}
    replaced = 0.0
    for turn, spare_prompts in enumerate(spares, start=1):
        flat = _flat(collected)
        if not world.total(flat.sum().double()):
            break
        spare = step.collect(world.share(spare_prompts), seed + turn)
        given = flat & ~_flat(spare)
        exchanged = float(world.total(given.sum().double()))
        if exchanged:
            rollout = _with_spares(step.policy, collected.rollout, spare.rollout, given.tolist())
            collected = step.experience(rollout)
            replaced += exchanged
    return collected, {"replaced": replaced, "flat": float(world.total(_flat(collected).sum().double()))}


def _flat(collected: Collected) -> Tensor:
    """[P] bool, of this process's prompts, on the CPU."""
    rewards = collected.scores.reward.cpu().double().view(-1, collected.rollout.group_size)
    return without_spread(rewards)[:, 0]


def _with_spares(policy: Policy, rollout: Rollout, spare: Rollout, given: Sequence[bool]) -> Rollout:
    """``rollout`` with the groups of ``spare`` in the places that are ``given`` up."""
    chosen = [(spare if gone else rollout).groups(place, place + 1) for place, gone in enumerate(given)]
    prompts = [part.prompts[0] for part in chosen]
    prompt_ids, prompt_mask = policy.collate(prompts)
    padding: Mapping[str, float] = {"response_ids": policy.pad_id, "response_mask": False}
    if rollout.sampled_logprobs is not None:
        padding = {**padding, "sampled_logprobs": 0.0}
    rows = {
        name: pad_sequence([row for part in chosen for row in getattr(part, name)], True, value)
        for name, value in padding.items()
    }
    return Rollout(
        prompts=prompts,
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        finished=torch.cat([part.finished for part in chosen]),
        responses=[text for part in chosen for text in part.responses],
        **rows,
    )
