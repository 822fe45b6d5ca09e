"""The reward of a run once its base is loaded: what a preset leaves to the base's heads is decided, without labels.

The preset `robust` reads heads where they follow the knockouts, and asks for knockouts where they do not
(`rewards.presets.Choice`). Any other reward stays as it is, and reads the heads that it names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from rich.console import Console

from cagsr.config import Config
from cagsr.distributed.process_group import World
from cagsr.evaluation.heads_cache import HeadsCache
from cagsr.evaluation.learnt_heads import (
    NothingToldError,
    find_heads,
    prompts_for_heads,
    read_file,
    read_heads,
)
from cagsr.io.terminal import say
from cagsr.models.policy import Policy
from cagsr.rewards.heads_found import ATTENTION, Heads
from cagsr.rewards.presets import Choice, as_read, choice_of, settled
from cagsr.rewards.salience import NothingToCoverError, Salience, build_salience
from cagsr.types import Prompt

__all__ = ["ChosenReward", "choose_reward"]

SINGLE = "a prompt has a single candidate, which there is none to compare with"


class ChosenReward(NamedTuple):
    """A config whose reward leaves nothing to choose, the salience of its prompts, and what was found of heads.

    ``heads`` is what a run keeps as heads.json: as of `learnt_heads.find_heads`, and where there was a choice the
    ``preset`` that was chosen and the ``reason`` in words. None where all heads are read and nothing was chosen.
    """

    config: Config
    salience: Salience
    heads: dict[str, Any] | None


def choose_reward(
    policy: Policy,
    config: Config,
    prompts: Sequence[Prompt],
    world: World,
    console: Console,
    *,
    kept: Path | None = None,
    model: Mapping[str, Any] | None = None,
) -> ChosenReward:
    """Settle the reward of a config for a base, and let the policy read the heads that it names.

    Heads are found on a few of the prompts, by the main process for all. ``kept`` is where the caller keeps what was
    found (`learnt_heads.keep_heads`): where it exists it is read, so that a run goes on with the same heads and reward.
    ``model`` identifies the base for the cache (`heads_cache.HeadsCache`); None: nothing is cached. The console is told
    what was found, in a line.

    Raises InputError for a file that is none of heads, or not of this model, and NothingToldError where heads are to be
    learnt and the base's responses do not tell them.
    """
    base, choice, asked = _Base(policy, prompts, console, kept, model or {}), choice_of(config), config.reward
    if choice is not None:
        found = world.by_main(partial(base.decided, config, choice))
        config = settled(config, found.heads["preset"])
    else:
        config = as_read(config)
        found = None if config.reward.heads == "all" else world.by_main(partial(base.heads, config))
    if found is not None:
        if config.reward.heads != "all":
            read_heads(policy, found.heads, found.place)
        say(console, _said(found, asked.preset if choice is not None else None))
    return ChosenReward(config, build_salience(config, prompts), None if found is None else found.heads)


class _Found(NamedTuple):
    """What was found of heads or decided, and where; ``before``: it was read there, and not asked of the base now."""

    heads: dict[str, Any]
    place: str
    before: bool = False


@dataclass(frozen=True)
class _Base:
    """A base that can be asked which of its heads tell what a response took up."""

    policy: Policy
    prompts: Sequence[Prompt]
    console: Console
    kept: Path | None
    model: Mapping[str, Any]

    def heads(self, config: Config) -> _Found:
        """The heads that ``reward.heads`` names: of a file, or learnt, now or before."""
        heads = str(config.reward.heads)
        if heads != "learn":
            return _Found(_unchosen(read_file(Path(heads))), heads, before=True)
        known = self._known()
        if known is not None and "weights" in known:
            return _Found(_unchosen(known), str(self.kept), before=True)
        salience = build_salience(config, self.prompts)
        cache = HeadsCache(self.model, self.policy, config, self.prompts, salience)
        if (found := cache.read()) is not None:
            return _Found(found, str(cache.path), before=True)
        count = len(prompts_for_heads(self.prompts, config.train.seed))
        with self.console.status("") as status:
            found = find_heads(
                self.policy,
                self.prompts,
                salience,
                config.sampling,
                seed=config.train.seed,
                begins=lambda number: status.update(f"finding the heads to read: prompt {number} of {count}"),
            )
        cache.write(found)
        return _Found(found, "what was learnt")

    def decided(self, config: Config, choice: Choice) -> _Found:
        """Which of a choice it is for this base, with the reason in words: as ``kept`` has it, or by the heads."""
        known, attentive = self._known(), settled(config, choice.attention)
        presets = (choice.knockouts, choice.attention, choice.values)
        if known is not None and "reason" in known and known.get("preset") in presets:
            serves = known["preset"] != choice.knockouts
            return self._as(_Found(known, str(self.kept), before=True), config, choice, serves)
        nothing, alone = partial(self._nothing_told, choice), config.sampling.candidates < 2
        if alone and config.reward.heads is None:
            return nothing(SINGLE)
        if attentive.reward.heads == "all":
            return nothing("reward.heads: all leaves no heads to be learnt")
        try:
            found = self.heads(attentive)
        except (NothingToldError, NothingToCoverError) as error:
            # Knockouts cover what was named too, but they need no heads.
            uncovered = isinstance(error, NothingToCoverError) and config.reward.salience.kind is not None
            if config.reward.heads is not None or uncovered:
                raise
            return nothing(error.why)
        try:
            heads = Heads.model_validate(found.heads)
        except ValidationError:
            reason, serves = f"{found.place} says nothing but which heads are read", False
        else:
            reason, serves = heads.reason, heads.advised == ATTENTION
        if alone:  # heads of a file, which were found elsewhere
            reason, serves = SINGLE, False
        return self._as(found._replace(heads=found.heads | {"reason": reason}), config, choice, serves)

    def _known(self) -> dict[str, Any] | None:
        mend = "A run keeps its heads there; remove it, and they are found anew."
        return read_file(self.kept, mend) if self.kept is not None and self.kept.exists() else None

    def _as(self, found: _Found, config: Config, choice: Choice, serves: bool) -> _Found:
        preset = choice.knockouts
        if serves:
            swaps = build_salience(settled(config, choice.values), self.prompts).contrasts is not None
            preset = choice.values if swaps else choice.attention
        return found._replace(heads={**found.heads, "preset": preset})

    def _nothing_told(self, choice: Choice, why: str) -> _Found:
        return _Found({"preset": choice.knockouts, "reason": why}, "what was learnt")


def _unchosen(heads: dict[str, Any]) -> dict[str, Any]:
    """What a file says of heads, without what another run chose by them."""
    return {key: value for key, value in heads.items() if key not in ("preset", "reason")}


def _said(found: _Found, asked: str | None) -> str:
    """What a run says of its heads, or of what they decided where the preset ``asked`` for was a choice."""
    before = f" (as in {found.place})" if found.before else ""
    if asked is not None:
        return f"reward: {asked} is {found.heads['preset']} for this base: {found.heads['reason']}{before}"
    try:
        heads = Heads.model_validate(found.heads)
    except ValidationError:  # a file of one's own, with weights alone
        return f"heads: those of {found.place} are read"
    read = sum(layer.read for layer in heads.layers.values())
    followed = "" if heads.follows is None else f", which they follow by {heads.follows:.2f} (at most 1)"
    return (
        f"heads: {read} are read, found by knockouts of {heads.pieces} pieces{followed}{before}. Without labels that "
        f"says: {heads.decision}"
    )
