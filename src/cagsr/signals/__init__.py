"""What a response's reward is made of: one file a signal, found by name.

A signal is a plain function ``(evidence, *, options) -> [N]`` float32, higher is better. A new one is a file
and a line in SIGNALS; a user's own is named by its dotted path and needs neither.
"""

__all__ = ["SIGNALS", "resolve"]

import importlib
from collections.abc import Mapping

from cagsr.errors import InputError, closest
from cagsr.signals.agreement import agreement
from cagsr.signals.certainty import certainty
from cagsr.signals.contradiction import contradiction
from cagsr.signals.coverage import coverage
from cagsr.signals.focus import focus
from cagsr.signals.grounding import grounding
from cagsr.signals.knockout import knockout
from cagsr.signals.length import length
from cagsr.signals.lexical_overlap import lexical_overlap
from cagsr.signals.lookback import lookback
from cagsr.signals.mass import mass
from cagsr.signals.precision import precision
from cagsr.signals.random_reward import random_reward
from cagsr.signals.reference_logprob import reference_logprob
from cagsr.signals.reference_overlap import reference_overlap
from cagsr.signals.repetition import repetition
from cagsr.signals.retold import retold
from cagsr.signals.reward_model import reward_model
from cagsr.signals.shift import shift
from cagsr.signals.surprise import surprise
from cagsr.signals.token_copy import token_copy
from cagsr.signals.unexplained import unexplained
from cagsr.signals.unfinished import unfinished
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
    """The signal of that name: from ``extra`` (what the task supplies), SIGNALS, or a dotted path to import.

    Raises InputError when there is none, or when the path leads to no function.
    """
    known = {**SIGNALS, **(extra or {})}
    if name in known:
        return known[name]
    if "." in name:
        return _imported(name)
    if name == "oracle":
        raise InputError(
            "signal 'oracle' is the task's own checker, and this data comes without one; "
            "use a built-in task or another signal"
        )
    raise InputError(
        f"unknown signal {name!r}{closest(name, known)}; "
        "a function of your own is named by its path, package.module.function"
    )


def _imported(path: str) -> Signal:
    module_name, _, attribute = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise InputError(
            f"signal {path!r}: cannot import {module_name!r}: {type(error).__name__}: {error}; "
            "the folder that holds it must be on PYTHONPATH"
        ) from error
    if not hasattr(module, attribute):
        functions = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        raise InputError(
            f"signal {path!r}: module {module_name!r} has no {attribute!r}{closest(attribute, functions)}"
        )
    signal: Signal = getattr(module, attribute)
    if not callable(signal):
        raise InputError(
            f"signal {path!r} is of type {type(signal).__name__}, not a function of (evidence, **options); name one"
        )
    return signal
