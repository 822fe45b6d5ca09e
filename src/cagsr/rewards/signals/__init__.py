"""Signals, the terms of a reward: one file each, found by name.

A signal is a plain function ``(evidence, *, options) -> [N]`` float32, higher is better. A new one is a file
and a name in `cagsr.config.registry`; a user's own is named by its dotted path and needs neither.
"""

__all__ = ["BY_TOKEN", "SIGNALS", "resolve"]

from collections.abc import Mapping

from cagsr.config import registry
from cagsr.config.named import find
from cagsr.errors import InputError
from cagsr.types import Signal

SIGNALS: dict[str, Signal] = {name: registry.load(path) for name, path in registry.SIGNALS.items()}

BY_TOKEN = frozenset(
    SIGNALS[name] for name in ("coverage", "focus", "grounding", "lookback", "mass", "precision", "shift")
)
"""Those of `SIGNALS` that read attention to each token of the prompt; the others read it by piece, or not at all."""


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
