"""Samples of the base, and adversarial responses made of them, with the signals of each: what `cagsr probe` ranks."""

__all__ = ["SHUFFLED", "Probed", "adversary_shares", "observe", "pair_accuracy", "share_flat"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cagsr.config.schema import Sampling
from cagsr.data.adversaries import ADVERSARIES
from cagsr.data.preferences import Pair
from cagsr.distributed.process_group import World
from cagsr.evaluation.evaluator import Answers, answer, measure_signals
from cagsr.evaluation.scoreboard import user_text
from cagsr.models.policy import Policy
from cagsr.probing.ranking import order
from cagsr.rewards.reward_set import Panel
from cagsr.rewards.salience import Salience
from cagsr.types import Prompt, Rollout

SHUFFLED = "shuffled"


@dataclass(frozen=True)
class Probed:
    """What the base wrote, and what the observer saw in it.

    sampled, greedy  K candidates a prompt with all signals; one greedy response a prompt without
    adversaries      name -> [P C] signals of the adversary made of a prompt's first sample, C columns of the panel
                     given for them, NaN where a prompt has none; ``shuffled`` is that sample under the next prompt
    """

    sampled: Answers
    greedy: Answers
    adversaries: dict[str, np.ndarray]


@torch.no_grad()
def observe(
    policy: Policy,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    panel: Panel,
    adversarial: Panel,
    salience: Salience,
    *,
    prompts_per_pass: int,
    world: World,
    seed: int = 0,
) -> Probed:
    """Sample and observe each part once: ``panel`` measures the samples, ``adversarial`` the adversaries.

    The observer is the policy itself, which before training is the reference.
    """
    how: dict[str, Any] = {"world": world, "prompts_per_pass": prompts_per_pass, "seed": seed}
    measure = measure_signals(panel.reward, policy, salience)
    sampled = answer(policy, prompts, sampling, measure=measure, **how)
    greedy = answer(policy, prompts, sampling.greedy(), **how)
    own = [texts[0] for texts in sampled.responses]
    measure = measure_signals(adversarial.reward, policy, salience)
    limit, parts = sampling.max_new_tokens, []
    for start in range(0, len(prompts), prompts_per_pass):
        asked = range(start, min(start + prompts_per_pass, len(prompts)))
        parts.append(_adversaries(policy, prompts, own, asked, measure, limit))
    return Probed(
        sampled, greedy, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    )


def _adversaries(
    policy: Policy,
    prompts: Sequence[Prompt],
    own: Sequence[str],
    asked: Sequence[int],
    measure: Callable[[Rollout], Tensor],
    limit: int,
) -> dict[str, np.ndarray]:
    """Adversary -> [p C] of the prompts whose places are ``asked``."""
    following = [(place + 1) % len(prompts) for place in asked]
    made = [
        [
            adversary(user_text(prompts[place]), own[place], own[other], limit)
            for adversary in ADVERSARIES.values()
        ]
        for place, other in zip(asked, following, strict=True)
    ]
    texts = [text or "" for adversaries in made for text in adversaries]
    signals = measure(policy.given([prompts[place] for place in asked], texts, limit)).cpu().numpy()
    there = np.array([[text is not None for text in adversaries] for adversaries in made])
    by_prompt = np.where(there[..., None], signals.reshape(*there.shape, -1), np.nan)
    elsewhere = policy.given([prompts[place] for place in following], [own[place] for place in asked], limit)
    return dict(zip(ADVERSARIES, by_prompt.swapaxes(0, 1), strict=True)) | {
        SHUFFLED: measure(elsewhere).cpu().numpy()
    }


def adversary_shares(name: str, probed: Probed, panel: Panel, adversarial: Panel) -> dict[str, float]:
    """Adversary -> share of prompts, in [0, 1], where the named reward likes it better than the real sample.

    Ties count half: a reward that cannot tell them apart has .5.

    The sample is the prompt's first, which the adversary was made of. The adversary joins the group of K samples, as
    it would in training, so that its signals are standardised with theirs. NaN for an adversary that no prompt has.
    """
    assert probed.sampled.signals is not None
    own = panel.signals_of(name, probed.sampled.signals)
    shares = {}
    for adversary, signals in probed.adversaries.items():
        theirs = adversarial.signals_of(name, signals)
        there = np.isfinite(theirs).all(-1)
        joined = torch.from_numpy(np.concatenate([own, theirs[:, None]], 1)[there])
        rewards = panel.rewards[name].combine(joined.flatten(0, 1), joined.shape[1])
        against = order(rewards.view(joined.shape[:2]).numpy())[:, -1, 0]
        shares[adversary] = float((against + 1).mean() / 2) if there.any() else float("nan")
    return shares


def share_flat(rewards_PK: np.ndarray) -> float:
    """Share of prompts, in [0, 1], whose candidates all get the same reward."""
    return float((order(rewards_PK) == 0).all((-1, -2)).mean())


@torch.no_grad()
def pair_accuracy(
    policy: Policy,
    pairs: Sequence[Pair],
    panel: Panel,
    salience: Salience,
    sampled: Answers,
    *,
    asked: Panel,
    limit: int,
    pairs_per_pass: int,
) -> dict[str, np.ndarray]:
    """Reward of ``asked`` -> [pairs] 1 where it prefers what was chosen, .5 for a tie, 0 otherwise.

    ``asked`` has those rewards of the ``panel``, which measured the base's samples, that can be measured here.

    A standardised term is measured in the spread of the base's samples: in a group of two it would be plus or minus
    one, whatever the difference.
    """
    assert sampled.signals is not None
    measure = measure_signals(asked.reward, policy, salience)
    parts = []
    for start in range(0, len(pairs), pairs_per_pass):
        part = pairs[start : start + pairs_per_pass]
        texts = [text for pair in part for text in (pair.chosen, pair.rejected)]
        parts.append(measure(policy.given([pair.prompt for pair in part], texts, limit)).cpu().numpy())
    signals = np.concatenate(parts)
    found = {}
    for name, reward in asked.rewards.items():
        own = torch.from_numpy(panel.signals_of(name, sampled.signals))
        spread = reward.spread(own.flatten(0, 1), own.shape[1])
        given = torch.from_numpy(asked.signals_of(name, signals))
        values = reward.relative(given, torch.zeros_like(spread), spread).view(-1, 2).numpy()
        found[name] = (order(values)[:, 0, 1] + 1) / 2
    return found
