"""Signals, the terms of a reward: one file each, found by name.

A signal is a plain function ``(evidence, *, options) -> [N]`` float32, higher is better. A new one is a file
and a line in SIGNALS; a user's own is named by its dotted path and needs neither.
"""

__all__ = ["SIGNALS", "resolve"]

from collections.abc import Mapping

from cagsr.config.named import find
from cagsr.errors import InputError
from cagsr.rewards.signals.agreement import agreement
from cagsr.rewards.signals.certainty import certainty
from cagsr.rewards.signals.contradiction import contradiction
from cagsr.rewards.signals.coverage import coverage
from cagsr.rewards.signals.focus import focus
from cagsr.rewards.signals.grounding import grounding
from cagsr.rewards.signals.knockout import knockout
from cagsr.rewards.signals.length import length
from cagsr.rewards.signals.lexical_overlap import lexical_overlap
from cagsr.rewards.signals.lookback import lookback
from cagsr.rewards.signals.mass import mass
from cagsr.rewards.signals.precision import precision
from cagsr.rewards.signals.random_reward import random_reward
from cagsr.rewards.signals.reference_logprob import reference_logprob
from cagsr.rewards.signals.reference_overlap import reference_overlap
from cagsr.rewards.signals.repetition import repetition
from cagsr.rewards.signals.retold import retold
from cagsr.rewards.signals.reward_model import reward_model
from cagsr.rewards.signals.shift import shift
from cagsr.rewards.signals.surprise import surprise
from cagsr.rewards.signals.token_copy import token_copy
from cagsr.rewards.signals.unexplained import unexplained
from cagsr.rewards.signals.unfinished import unfinished
from cagsr.types import Signal

SIGNALS: dict[str, Signal] = {
    "agreement": agreement,
    "certainty": certainty,
    "contradiction": contradiction,
    "coverage": coverage,
    "focus": focus,
    "grounding": grounding,
    "knockout": knockout,
    "length": length,
    "lexical_overlap": lexical_overlap,
    "lookback": lookback,
    "mass": mass,
    "precision": precision,
    "random_reward": random_reward,
    "reference_logprob": reference_logprob,
    "reference_overlap": reference_overlap,
    "repetition": repetition,
    "retold": retold,
    "reward_model": reward_model,
    "shift": shift,
    "surprise": surprise,
    "token_copy": token_copy,
    "unexplained": unexplained,
    "unfinished": unfinished,
}


def resolve(name: str, extra: Mapping[str, Signal] | None = None) -> Signal:
    """Find a signal by name: in ``extra`` (what the task supplies), in SIGNALS, or by a dotted path to import.

    Raises InputError when there is none, or when the path leads to no function.
    """
    known = {**SIGNALS, **(extra or {})}
    if name == "oracle" and name not in known:
        raise InputError(
            "signal 'oracle' is the task's own checker, and this data comes without one; "
            "use a built-in task or another signal"
        )
    return find("signal", name, known, "evidence")
