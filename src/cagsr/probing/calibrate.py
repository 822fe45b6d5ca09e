"""`cagsr calibrate`: the weights of a reward's terms, fitted to a model without labels, or with a few on top."""

import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from rich.console import Console

from cagsr.config import Config
from cagsr.config.schema import Term
from cagsr.config.yaml_document import write_document
from cagsr.data import readers as sources
from cagsr.data import splits
from cagsr.data.row_messages import say_rows
from cagsr.distributed.process_group import World, accelerated
from cagsr.errors import InputError
from cagsr.evaluation.chosen_reward import ChosenReward, choose_reward
from cagsr.evaluation.evaluator import measure_signals
from cagsr.evaluation.shown_prompt import say_prompt
from cagsr.io.atomic_write import refuse_existing, write_atomically
from cagsr.io.quiet_libraries import warn
from cagsr.io.template_date import pinned_date
from cagsr.io.terminal import say
from cagsr.models.build import build_policy, check_sampling
from cagsr.models.policy import Policy
from cagsr.probing.signal_differences import contrast_pairs, labelled_pairs, read_labelled
from cagsr.rewards.calibration import Fit, Pairs, calibrated_terms, cross_validated
from cagsr.rewards.presets import as_read, build_reward, possible
from cagsr.rewards.reward import Reward
from cagsr.runs.identity import of_configured
from cagsr.tasks.checkers import find_checker
from cagsr.types import Prompt

__all__ = ["calibrate"]

NO_CONTRASTS = (
    "A response without words, or cut short, cannot be made worse: raise --prompts or sampling.max_new_tokens, or "
    "train the base further."
)
NO_PAIRS = "Add pairs of other prompts, raise --labels, or leave out --pairs: weights need no labels."


@pinned_date()
def calibrate(
    config: Config | str | Path,
    output: Path,
    console: Console | None = None,
    *,
    prompts: int = 64,
    pairs: str | None = None,
    labels: int | None = None,
) -> dict[str, Any]:
    """Weigh the terms of ``config.reward`` for the model of ``config`` and write them as a preset.

    ``config`` is a `Config` or a YAML file. This is `cagsr calibrate`.

    Contrasts are made of one greedy and one sampled response to each of ``prompts`` training prompts; no label is
    read. The unit of a standardised term is the spread of the base's samples. ``pairs`` names a file with columns
    prompt, chosen, rejected, of which ``labels`` (all, if None) move the label-free weights.

    Returns what it found: weights, and the agreement with pairs of prompts that were not fitted. Raises InputError
    for an output that is no YAML file, for pairs that cannot be used, and where no signal orders the contrasts.
    """
    config, console = Config.of(config), console or Console()
    started = time.perf_counter()
    _check_arguments(output, pairs, labels)
    checker = find_checker(config.data)
    terms = [term for each in possible(config) for term in build_reward(each.reward, checker).terms]
    _check_candidates(config, terms)
    seed = config.train.seed
    rows = None if pairs is None else read_labelled(config, pairs, labels)
    unlabelled = splits.read_rows(config, "train")
    policy, found, (config, salience, _) = _loaded(config, unlabelled, console)
    reward = build_reward(config.reward, checker)
    chosen = _some(found, prompts, seed)
    measure = measure_signals(reward, policy, salience)
    ruler, contrasts = contrast_pairs(config, policy, chosen, reward, measure)
    fitted = _fitted(contrasts, "contrasts", NO_CONTRASTS, seed)
    summary: dict[str, Any] = {"prompts": len(chosen), "seed": seed, "contrasts": _told(fitted, contrasts)}
    weights, differences = fitted.weights, contrasts.differences
    if rows is not None:
        given = labelled_pairs(config, policy, rows, measure, ruler, console)
        labelled = _fitted(given, f"--pairs {pairs}", NO_PAIRS, seed, prior=weights)
        summary["labels"] = _told(labelled, given)
        weights, differences = labelled.weights, np.concatenate([differences, given.differences])
    summary["terms"] = [_as_data(term) for term in _terms(reward, weights, differences)]
    summary["seconds"] = round(time.perf_counter() - started, 1)
    preset = {"about": _about(config, summary), **_reading(config), "terms": summary["terms"]}
    write_atomically(output, write_document(preset))
    _tell(console, summary, output)
    return summary


def _loaded(
    config: Config, rows: Sequence[sources.Row], console: Console
) -> tuple[Policy, list[Prompt], ChosenReward]:
    """The base, its prompts and the reward that is chosen for it; the console is told of each."""
    policy = build_policy(config)
    check_sampling(policy, console)
    world = World(accelerated())
    policy.to(world.device)
    prompts, report = splits.build_prompts(config, policy, "train", rows=rows)
    say_rows(console, "train prompts", report)
    model = of_configured(config)
    chosen = choose_reward(policy, config, prompts, world, console, model=model)
    say_prompt(console, prompts, policy, chosen.salience)
    if (uncovered := chosen.salience.uncovered(prompts)) is not None:
        warn(console, uncovered)
    return policy, prompts, chosen


def _check_candidates(config: Config, terms: Sequence[Term]) -> None:
    if config.sampling.candidates < 2 and any(term.standardise != "none" for term in terms):
        raise InputError(
            "cagsr calibrate measures standardised terms in the spread of a prompt's responses: set "
            "sampling.candidates to 2 or more"
        )


def _check_arguments(output: Path, pairs: str | None, labels: int | None) -> None:
    if output.suffix not in (".yaml", ".yml"):
        raise InputError(f"--output: {output} must end in .yaml, so that reward.preset takes it for a file")
    refuse_existing(output, "--output")
    if labels is not None and pairs is None:
        raise InputError("--labels: name the file of labelled pairs with --pairs")


def _some(prompts: Sequence[Prompt], count: int, seed: int) -> list[Prompt]:
    distinct = list({prompt.text: prompt for prompt in prompts}.values())
    if len(distinct) < 2:
        raise InputError(
            "cagsr calibrate contrasts prompts with one another, and there is only one; give more data"
        )
    return Random(f"calibration {seed}").sample(distinct, min(count, len(distinct)))


def _terms(reward: Reward, weights: np.ndarray, differences: np.ndarray) -> list[Term]:
    try:
        return calibrated_terms(reward.terms, weights, differences)
    except ValueError as error:
        raise InputError(f"{error}. Add signals to reward.terms, or train the base further.") from error


def _fitted(pairs: Pairs, what: str, mend: str, seed: int, prior: np.ndarray | None = None) -> Fit:
    try:
        return cross_validated(pairs, prior=prior, seed=seed)
    except ValueError as error:
        raise InputError(f"{what}: {error}. {mend}") from error


def _told(fitted: Fit, pairs: Pairs) -> dict[str, Any]:
    return {"pairs": len(pairs), "held_out": fitted.held_out.as_dict(), "by_kind": fitted.by_kind}


def _as_data(term: Term) -> dict[str, Any]:
    found: dict[str, Any] = {
        "signal": term.signal,
        "weight": term.weight,
        "standardise": term.standardise,
    }
    return found | ({"options": dict(term.options)} if term.options else {})


def _reading(config: Config) -> dict[str, str]:
    """What the weights were fitted to, for the preset: learnt heads, pieces. Defaults are left out."""
    reward = as_read(config).reward
    learnt = {} if reward.heads == "all" else {"heads": "learn"}
    return learnt | ({"salience": "pieces"} if reward.salience.kind == "pieces" else {})


def _about(config: Config, summary: dict[str, Any]) -> str:
    """What a reader of the preset needs to know of where its weights come from."""
    model = config.model.name or f"the base of {config.data.task}"
    if config.model.lora and config.model.lora.path:
        model += f" with the adapter {config.model.lora.path}"
    told = [
        f"Weights fitted by cagsr calibrate to {model} on {config.data.name}, "
        f"{summary['prompts']} training prompts, seed {summary['seed']}."
    ]
    for name, what in (("contrasts", "constructed contrasts (no label)"), ("labels", "labelled pairs")):
        if name in summary:
            found = summary[name]["held_out"]
            told.append(
                f"Held-out agreement with {summary[name]['pairs']} {what}: "
                f"{found['mean']:.3f} [{found['low']:.3f}, {found['high']:.3f}]."
            )
    return " ".join(told)


def _tell(console: Console, summary: dict[str, Any], output: Path) -> None:
    for name in ("contrasts", "labels"):
        if name in summary:
            found = summary[name]["held_out"]
            say(
                console,
                f"{name}: {summary[name]['pairs']} pairs, held-out agreement {found['mean']:.3f} "
                f"[{found['low']:.3f}, {found['high']:.3f}]",
            )
            for kind, share in summary[name]["by_kind"].items():
                say(console, f"{kind:12} {share:.3f}", indent="  ")
    for term in summary["terms"]:
        how = "" if term["standardise"] == "none" else f" in spreads of the {term['standardise']}"
        say(console, f"{term['weight']:6.3f}  {term['signal']}{how}", indent="  ")
    say(console, f"written in {summary['seconds']} s; use it: cagsr train ... reward.preset={output}")
