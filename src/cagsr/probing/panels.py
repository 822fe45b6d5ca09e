"""What `cagsr probe` measures: every reward and signal of samples, and fewer of adversaries."""

from collections.abc import Mapping, Sequence

import torch

from cagsr.config import Config
from cagsr.config.schema import Term
from cagsr.rewards.presets import CHOICES, PRESETS, build_reward, checker_signals, load_preset
from cagsr.rewards.reward_set import Panel, label
from cagsr.rewards.signals import SIGNALS
from cagsr.tasks.task import Checker
from cagsr.types import Evidence

__all__ = ["ENTROPY", "LOG_PROBABILITY", "OWN_TERMS", "build_panels", "measured_rewards"]

# These need what prompts alone may not have: a reference, people's pairs, values to exchange.
NEEDING_MORE = ("reference_overlap", "reward_model", "swapped")
OWN_TERMS = "reward.terms"
LOG_PROBABILITY, ENTROPY = "reference_logprob", "entropy"


def measured_rewards(
    config: Config, checker: Checker | None, name: str = OWN_TERMS
) -> dict[str, Sequence[Term]]:
    """The reward of a settled config, which is called ``name``, and every other preset that can be measured here."""
    own = build_reward(config.reward, checker).terms
    rewards: dict[str, Sequence[Term]] = {
        preset: load_preset(preset)
        for preset in PRESETS
        if preset not in CHOICES and (preset != "oracle" or checker is not None)
    }
    rewards = {
        preset: terms
        for preset, terms in rewards.items()
        if not any(term.signal in NEEDING_MORE for term in terms)
    }
    # What was chosen goes by the name of the choice, and by no other.
    known = (name,) if config.reward.terms else (name, config.reward.preset)
    return {name: own} | {other: terms for other, terms in rewards.items() if other not in known}


def build_panels(rewards: Mapping[str, Sequence[Term]], checker: Checker | None) -> tuple[Panel, Panel]:
    """What is measured of samples (every reward and signal), and of adversaries (every reward, log-probability)."""
    extra = {ENTROPY: _entropy, **checker_signals(checker)}
    logprob = {LOG_PROBABILITY: [Term(LOG_PROBABILITY, weight=1.0, standardise="none")]}
    return Panel({**rewards, **_signals(rewards)}, extra), Panel({**rewards, **logprob}, extra)


def _signals(rewards: Mapping[str, Sequence[Term]]) -> dict[str, Sequence[Term]]:
    """Every signal with its defaults, and with the options that some reward gives it, by its label."""
    terms = [Term(name, weight=1.0, standardise="none") for name in SIGNALS if name not in NEEDING_MORE]
    terms += [
        Term(term.signal, weight=1.0, standardise="none", options=term.options)
        for used in rewards.values()
        for term in used
        if term.signal != "oracle"
    ]
    named: dict[str, Sequence[Term]] = {label(term): [term] for term in terms}
    # A reward and a signal may have one name, as length does: it is then the same thing.
    return {name: term for name, term in named.items() if name not in rewards} | {
        ENTROPY: [Term(ENTROPY, weight=1.0, standardise="none")]
    }


def _entropy(evidence: Evidence) -> torch.Tensor:
    """[N] nats a token of the observer's distribution."""
    lengths = evidence.rollout.lengths.clamp(min=1)
    return evidence.observation.entropy.sum(-1) / lengths
