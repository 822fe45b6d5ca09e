"""`cagsr probe`: before any training, is the reward worth following here?"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from cagsr.config import Config
from cagsr.config.schema import RewardSettings
from cagsr.data import splits
from cagsr.data.row_messages import say_rows
from cagsr.distributed.launcher import refuse_unseen
from cagsr.distributed.process_group import World, accelerated
from cagsr.errors import InputError
from cagsr.evaluation.chosen_reward import choose_reward
from cagsr.evaluation.evaluator import Answers, measure_signals
from cagsr.evaluation.shown_prompt import say_prompt
from cagsr.io.quiet_libraries import warn
from cagsr.io.template_date import pinned_date
from cagsr.metrics.bootstrap import interval
from cagsr.models.build import build_policy, check_sampling
from cagsr.models.policy import Policy
from cagsr.probing.heads import favoured, heads_as_data
from cagsr.probing.labels import find_agreement, find_truths
from cagsr.probing.panels import ENTROPY, LOG_PROBABILITY, OWN_TERMS, build_panels, measured_rewards
from cagsr.probing.ranking import Ranked, rank
from cagsr.probing.samples import SHUFFLED, Probed, adversary_shares, observe, share_flat
from cagsr.probing.verdict import Base, Found, advised, hint, judge_base, judge_reward, overall
from cagsr.rewards.heads_found import KNOCKOUT
from cagsr.rewards.presets import CHOICES, as_read, possible
from cagsr.rewards.reward import Reward
from cagsr.rewards.reward_set import Panel
from cagsr.rewards.salience import Salience
from cagsr.runs.identity import described, of_configured
from cagsr.tasks.bases import base_name
from cagsr.tasks.checkers import find_checker
from cagsr.tasks.task import Checker
from cagsr.types import Prompt

__all__ = ["probe"]


@pinned_date()
def probe(config: Config | str | Path, console: Console | None = None, prompts: int = 100) -> dict[str, Any]:
    """Sample the base on ``prompts`` development prompts (training prompts where no others are named), measure every
    signal and preset, and judge each preset by whatever is at hand: checker, references, ``compare.preferences``.

    Returns what was found, as data: ``base``, ``rewards`` and ``signals`` by name, the ``verdict`` with its
    ``reasons`` and the ``preset`` that it is about, ``yaml`` lines to use (None where the verdict is no), ``cost``, and
    where heads were learnt (``reward.heads``) ``heads``: their layers, whether they serve, and the preset that follows.
    ``configured`` is the reward of the config, and ``measured`` what it came to where that was a choice.

    ``config`` is a `Config` or a YAML file. This is `cagsr probe`. Raises InputError where a prompt gets a single
    response, and for fewer than two prompts.
    """
    config, console = Config.of(config), console or Console()
    started = time.perf_counter()
    found = _probed(config, console, prompts)
    return found | {"seconds": round(time.perf_counter() - started, 1)}


def _probed(config: Config, console: Console, prompts: int) -> dict[str, Any]:
    sampling = config.sampling
    checker = _checked(config)
    split = "development" if splits.has_evaluation_data(config) else "train"
    config = _of_prompts(config, split, prompts)
    policy, asked, world = _loaded(config, split, prompts, console)
    configured = _reward_name(config)
    model = of_configured(config)
    config, salience, learnt = choose_reward(policy, config, asked, world, console, model=model)
    rewards = measured_rewards(config, checker, configured)
    panel, adversarial = build_panels(rewards, checker)
    _say(console, asked, policy, salience)
    heads = heads_as_data(learnt)
    per_pass = max(1, config.train.micro_batch // sampling.candidates)
    how: dict[str, Any] = {"prompts_per_pass": per_pass, "world": world, "seed": config.train.seed}
    probed = observe(policy, asked, sampling, panel, adversarial, salience, **how)
    truths, missing = find_truths(config, split, asked, probed.sampled, checker)
    agreed, unread = find_agreement(config, policy, panel, salience, probed, checker, console)
    missing |= {} if agreed else {"pairs": "none given (--pairs FILE)"}
    missing |= {} if unread is None else {"oracle on pairs": unread}
    found = {
        name: _found(name, panel, adversarial if name in rewards else None, probed, truths, agreed.get(name))
        for name in panel.rewards
        if name != ENTROPY
    }
    base = _base(probed, panel, adversarial, truths)
    verdicts = {name: judge_reward(found[name]) for name in rewards}
    chosen = advised(verdicts, found, favoured(heads, configured))
    verdict = overall(judge_base(base), verdicts[chosen])
    judged = {name: {"verdict": one.level, "reasons": list(one.reasons)} for name, one in verdicts.items()}
    return {
        **_subject(config),
        "split": split,
        "prompts": len(asked),
        "candidates": sampling.candidates,
        "seed": config.train.seed,
        "missing": missing,
        "base": asdict(base) | _quality(asked, probed, checker, truths),
        "rewards": {name: _as_data(found[name]) | judged[name] for name in rewards},
        "signals": {name: _as_data(one) for name, one in found.items() if name not in rewards},
        "verdict": verdict.level,
        "reasons": list(verdict.reasons),
        "preset": chosen,
        "configured": configured,
        "measured": _reward_name(config),
        "heads": heads,
        "hint": hint(found, chosen),
        "yaml": None if verdict.level == "no" else _yaml(config, chosen),
        "cost": _cost(config, policy, asked[:per_pass], panel.rewards[chosen], salience, probed.sampled),
    }


def _checked(config: Config) -> Checker | None:
    """The checker of the data; what is wrong with the settings or a reward is found before a model is loaded."""
    if config.sampling.candidates < 2:
        raise InputError("cagsr probe compares responses to one prompt: set sampling.candidates to 2 or more")
    checker = find_checker(config.data)
    for each in possible(config):
        build_panels(measured_rewards(each, checker), checker)
    return checker


def _subject(config: Config) -> dict[str, Any]:
    """What is probed: the data and the weights."""
    return {
        "task": config.data.name,
        "model": base_name(config),
        "weights": described(config),
    }


def _reward_name(config: Config) -> str:
    return config.reward.preset if config.reward.terms is None else OWN_TERMS


def _say(console: Console, prompts: list[Prompt], policy: Policy, salience: Salience) -> None:
    say_prompt(console, prompts, policy, salience)
    if (uncovered := salience.uncovered(prompts)) is not None:
        warn(console, uncovered)


def _loaded(config: Config, split: str, count: int, console: Console) -> tuple[Policy, list[Prompt], World]:
    """The base and the first ``count`` prompts. What is wrong with the data is found before the model is loaded."""
    world = World(accelerated())
    refuse_unseen(world.size)
    console.quiet = console.quiet or world.rank > 0
    splits.check_pairs(config)
    rows = splits.read_rows(config, split)
    policy = build_policy(config)
    check_sampling(policy, console)
    policy.to(world.device)
    asked, report = splits.build_prompts(config, policy, split, rows=rows)
    say_rows(console, f"{split} prompts", report)
    if len(asked) < 2:
        raise InputError(
            "cagsr probe hands responses to other prompts, and there is only one; give more data"
        )
    return policy, asked[:count], world


def _found(
    name: str,
    panel: Panel,
    adversarial: Panel | None,
    probed: Probed,
    truths: Mapping[str, np.ndarray],
    agreed: np.ndarray | None,
) -> Found:
    """What is known of a reward, or of a signal alone: against that nobody makes adversaries (None)."""
    return Found(
        by=_ranked(name, panel, probed, truths),
        pairs=None if agreed is None else interval(agreed),
        pair_count=0 if agreed is None else len(agreed),
        adversaries={} if adversarial is None else adversary_shares(name, probed, panel, adversarial),
        flat=share_flat(_scores(name, panel, probed)),
    )


def _of_prompts(config: Config, split: str, count: int) -> Config:
    """The config with so many prompts to evaluate on, or to generate."""
    generated = {"data.count": count} if split == "train" and config.data.task else {}
    return config.replaced({"data.evaluation_count": count, **generated})


def _scores(name: str, panel: Panel, probed: Probed) -> np.ndarray:
    assert probed.sampled.signals is not None
    return panel.combine(name, probed.sampled.signals)


def _ranked(name: str, panel: Panel, probed: Probed, truths: Mapping[str, np.ndarray]) -> dict[str, Ranked]:
    scores = _scores(name, panel, probed)
    given = np.stack([probed.sampled.tokens.astype(float), _scores(LOG_PROBABILITY, panel, probed)])
    return {truth: rank(scores, values, given) for truth, values in truths.items()}


def _base(probed: Probed, panel: Panel, adversarial: Panel, truths: Mapping[str, np.ndarray]) -> Base:
    sampled = probed.sampled
    own = _scores(LOG_PROBABILITY, panel, probed)[:, 0]
    elsewhere = adversarial.signals_of(LOG_PROBABILITY, probed.adversaries[SHUFFLED])[:, 0]
    quality = truths.get("quality")
    return Base(
        headroom=None if quality is None else float((quality.max(1) - quality.mean(1)).mean()),
        alike=float(np.mean([len(set(texts)) == 1 for texts in sampled.responses])),
        empty=float(np.mean([not text.strip() for texts in sampled.responses for text in texts])),
        unfinished=float(1 - sampled.finished.mean()),
        repeated=float(sampled.repeated.mean()),
        unread=float((elsewhere >= own).mean()),
        entropy=float(_scores(ENTROPY, panel, probed).mean()),
    )


def _quality(
    prompts: Sequence[Prompt], probed: Probed, checker: Checker | None, truths: Mapping[str, np.ndarray]
) -> dict[str, float]:
    if checker is None:
        return {}
    greedy = [
        checker.quality(prompt.row, texts[0])
        for prompt, texts in zip(prompts, probed.greedy.responses, strict=True)
    ]
    return {
        "greedy_quality": float(np.mean(greedy)),
        "sampled_quality": float(truths["quality"].mean()),
        "invented": float(-truths["invented"].mean()),
    }


def _yaml(config: Config, name: str) -> str:
    if name == OWN_TERMS:
        return "reward:  # yours, as it stands\n"
    given, read = config.sampling, as_read(config).reward
    left = read.salience.model_copy(update={"kind": None})
    measured = read.preset if name in CHOICES else name
    of_preset = as_read(config.replaced({"reward": RewardSettings(preset=measured, salience=left)})).reward
    # Every preset was measured with the heads and the salience of this config. Knockouts read no heads.
    heads = f"  heads: {read.heads}\n" if read.heads != of_preset.heads and measured != KNOCKOUT else ""
    kind = read.salience.kind
    salience = f"  salience: {{kind: {kind}}}\n" if kind != of_preset.salience.kind else ""
    return (
        f"reward:\n  preset: {name}\n{heads}{salience}"
        f"sampling:\n  candidates: {given.candidates}\n  max_new_tokens: {given.max_new_tokens}\n"
    )


def _cost(
    config: Config,
    policy: Policy,
    prompts: list[Prompt],
    reward: Reward,
    salience: Salience,
    sampled: Answers,
) -> dict[str, float]:
    """What training as configured would take on this machine, from one pass of each kind that a step makes."""
    training = config.train
    started = time.perf_counter()
    rollout = policy.sample(prompts, config.sampling, training.seed)
    measure_signals(reward, policy, salience)(rollout)
    with torch.no_grad():
        policy(rollout)
    collected = time.perf_counter()
    policy(rollout).logprobs.sum().backward()
    updated = time.perf_counter()
    policy.zero_grad(set_to_none=True)
    per_part = collected - started + config.algorithm.epochs * (updated - collected)
    responses = training.steps * training.prompts_per_step * config.sampling.candidates
    return {
        "steps": training.steps,
        "responses": responses,
        "tokens": round(responses * float(sampled.tokens.mean())),
        "seconds": round(per_part * training.steps * training.prompts_per_step / len(prompts), 1),
    }


def _as_data(found: Found) -> dict[str, Any]:
    data: dict[str, Any] = {
        truth: {
            "auc": None if ranked.auc is None else ranked.auc.as_dict(),
            "gain": ranked.gain.as_dict(),
            "partial": ranked.partial.as_dict(),
        }
        for truth, ranked in found.by.items()
    }
    if found.pairs is not None:
        data["pairs"] = found.pairs.as_dict() | {"count": found.pair_count}
    if found.adversaries:
        data["adversaries"] = {
            name: None if math.isnan(share) else share for name, share in found.adversaries.items()
        }
    return data | {"flat": found.flat}
