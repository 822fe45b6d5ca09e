"""Reward presets: those of presets.yaml, a preset file of the user's own, or the terms of a config.

One of them, `robust`, is no sum but a choice among others, which is made when a base is at hand
(`evaluation.chosen_reward`). Where none can be sampled it stands for the knockouts among them.
"""

from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError

from cagsr.config import Config
from cagsr.config.fields import Section
from cagsr.config.messages import messages
from cagsr.config.schema import RewardSettings, Term
from cagsr.config.yaml_document import read_document
from cagsr.errors import InputError, closest
from cagsr.rewards.reward import Reward
from cagsr.tasks.task import Checker
from cagsr.types import Evidence, Signal

__all__ = [
    "CHOICES",
    "PRESETS",
    "Choice",
    "as_read",
    "build_reward",
    "check_signal",
    "checker_signals",
    "choice_of",
    "learns_heads",
    "load_preset",
    "possible",
    "settled",
    "terms_of",
]


class Preset(Section):
    """Content of a preset file."""

    about: str = Field(default="", description="What the preset is, in words.")
    heads: Literal["all", "learn"] = Field(default="all", description="Default of reward.heads.")
    salience: Literal["uniform", "pieces"] = Field(
        default="uniform", description="Default of reward.salience.kind."
    )
    terms: list[Term] = Field(min_length=1, description="The terms of the sum.")


class Choice(Section):
    """Names of the presets among which the heads of a base decide."""

    attention: str = Field(description="Where the heads follow the knockouts.")
    values: str = Field(description="Where, besides, the prompts have values that can be exchanged.")
    knockouts: str = Field(description="Where they do not, and where nothing can be told.")


_PACKAGED: Mapping[str, Any] = read_document(
    str(resources.files("cagsr.rewards").joinpath("presets.yaml"))
).data
PRESETS: tuple[str, ...] = tuple(_PACKAGED)
CHOICES: Mapping[str, Choice] = {
    name: Choice.model_validate(entry["choose"]) for name, entry in _PACKAGED.items() if "choose" in entry
}


def load_preset(name_or_path: str | Path) -> list[Term]:
    """The terms of a preset by name, or of a YAML file with the same ``terms`` list.

    A file is read as a config is, so ``1e-1`` is a number here too. Of a choice the terms are those of its knockouts.
    Raises InputError for an unknown name, and with file and line for a file that is no preset.
    """
    return _preset(name_or_path).terms


def learns_heads(name_or_path: str | Path) -> bool:
    """Does a preset read heads that are learnt from prompts? Raises InputError as `load_preset` does."""
    return _preset(name_or_path).heads == "learn"


def as_read(config: Config) -> Config:
    """The config with its ``reward.heads`` and ``reward.salience.kind``, where it leaves them to its preset.

    Terms of its own have no preset: all heads, all content words. A choice says nothing until it is `settled`.

    Raises InputError as `load_preset` does.
    """
    if choice_of(config) is not None:
        return config
    reward = config.reward
    preset = Preset(terms=reward.terms) if reward.terms else _preset(reward.preset)
    salience = reward.salience.model_copy(update={"kind": reward.salience.kind or preset.salience})
    return config.replaced({"reward.heads": reward.heads or preset.heads, "reward.salience": salience})


def choice_of(config: Config) -> Choice | None:
    """The choice that ``reward.preset`` leaves to the base's heads; None for any other reward."""
    return None if config.reward.terms else CHOICES.get(config.reward.preset)


def settled(config: Config, preset: str) -> Config:
    """The config with this preset in the place of its choice, as `as_read`; heads and salience that it names stay."""
    return as_read(config.replaced({"reward.preset": preset}))


def possible(config: Config) -> list[Config]:
    """All that `evaluation.chosen_reward` may make of a config, so that each is checked before a model is loaded."""
    choice = choice_of(config)
    if choice is None:
        return [as_read(config)]
    # A single candidate can be compared with none, and so tells nothing of heads.
    few = config.sampling.candidates < 2
    names = [choice.knockouts] if few else [choice.knockouts, choice.attention, choice.values]
    return [settled(config, name) for name in names]


def _preset(name_or_path: str | Path) -> Preset:
    if (choice := CHOICES.get(str(name_or_path))) is not None:
        return _preset(choice.knockouts)
    if str(name_or_path) in PRESETS:
        return Preset.model_validate(deepcopy(_PACKAGED[str(name_or_path)]))
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        raise InputError(
            f"unknown preset {str(name_or_path)!r}{closest(str(name_or_path), PRESETS)}; "
            "your own is named by its file, path/to/preset.yaml"
        )
    try:
        document = read_document(path)
    except InputError as error:
        raise InputError(f"reward.preset: {error}") from error
    try:
        return Preset.model_validate(document.data)
    except ValidationError as error:
        lines = [f"reward.preset: {line}" for line in messages(error, document, Preset)]
        raise InputError("\n".join(lines)) from None


def terms_of(reward: Any) -> tuple[Term, ...]:
    """The terms of a `Reward`, a `Term` or a sequence of terms. Raises InputError for anything else."""
    if isinstance(reward, Reward):
        return reward.terms
    terms = (reward,) if isinstance(reward, Term) else reward
    if not isinstance(terms, list | tuple) or not all(isinstance(term, Term) for term in terms):
        raise InputError(
            f"reward: expected terms, got {reward!r:.60}; give a list such as [Term('coverage')]"
        )
    return tuple(terms)


def build_reward(reward: RewardSettings, checker: Checker | None) -> Reward:
    """The reward of a config: its terms, or else its preset's; only the oracle reads the checker."""
    return Reward(reward.terms or load_preset(reward.preset), checker_signals(checker))


def check_signal(key: str, name: str, checker: Checker | None) -> None:
    """Raise InputError, with the ``key`` of the config, for a signal that does not exist."""
    try:
        Reward([Term(name)], checker_signals(checker))
    except InputError as error:
        raise InputError(f"{key}: {error}") from error


def checker_signals(checker: Checker | None) -> Mapping[str, Signal]:
    """The signals that a checker supplies: ``oracle``, or none without one."""
    return {} if checker is None else {"oracle": partial(_oracle, checker)}


def _oracle(checker: Checker, evidence: Evidence) -> torch.Tensor:
    """[N] the checker's quality of each response, in [0, 1]: ``oracle``, an upper bound that uses the answers."""
    rollout = evidence.rollout
    quality = [
        checker.quality(rollout.prompts[row // rollout.group_size].row, text)
        for row, text in enumerate(rollout.responses)
    ]
    return torch.tensor(quality, device=evidence.salience.device)
