"""Set of rewards measured together: a signal that several of them share is measured once."""

__all__ = ["Panel", "label"]

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from cagsr.config.schema import Term
from cagsr.rewards.reward import Reward
from cagsr.rewards.signals import resolve
from cagsr.types import Signal


class Panel:
    """Named ``rewards``, and ``reward``: one whose C columns are every signal that they need, once.

    Two terms are the same signal when their options are, those left out counted as their defaults.
    """

    def __init__(
        self, rewards: Mapping[str, Sequence[Term]], extra: Mapping[str, Signal] | None = None
    ) -> None:
        found: dict[str, Term] = {}
        self._columns: dict[str, list[int]] = {}
        for name, terms in rewards.items():
            keys = [json.dumps([term.signal, _options(term, extra)], sort_keys=True) for term in terms]
            for key, term in zip(keys, terms, strict=True):
                found.setdefault(key, Term(term.signal, weight=1.0, standardise="none", options=term.options))
            self._columns[name] = [list(found).index(key) for key in keys]
        self._extra = extra
        self.reward = Reward(list(found.values()), extra)
        self.rewards = {name: Reward(terms, extra) for name, terms in rewards.items()}

    def signals_of(self, name: str, signals: np.ndarray) -> np.ndarray:
        """[... C] as measured by ``reward`` -> [... c]: the columns of one of the rewards, in its order."""
        return signals[..., self._columns[name]]

    def without(self, signal: str) -> "Panel":
        """The panel of the rewards that do not read that signal."""
        kept = {
            name: reward.terms
            for name, reward in self.rewards.items()
            if all(term.signal != signal for term in reward.terms)
        }
        return Panel(kept, self._extra)

    def combine(self, name: str, signals_PKC: np.ndarray) -> np.ndarray:
        """[P K] the named reward of P groups of K candidates."""
        own = torch.from_numpy(self.signals_of(name, signals_PKC))
        return self.rewards[name].combine(own.flatten(0, 1), own.shape[1]).view(own.shape[:2]).numpy()


def label(term: Term) -> str:
    """Label of a term: its signal and the options that are set: ``coverage gate``, ``grounding probability``."""
    defaults = _defaults(resolve(term.signal)) if "." not in term.signal else {}
    said = [
        option if value is True else f"no {option}" if value is False else str(value)
        for option, value in term.options.items()
        if option not in defaults or defaults[option] != value
    ]
    return " ".join([term.signal, *said])


def _options(term: Term, extra: Mapping[str, Signal] | None) -> dict[str, Any]:
    return _defaults(resolve(term.signal, extra)) | dict(term.options)


def _defaults(signal: Signal) -> dict[str, Any]:
    try:
        parameters = inspect.signature(signal).parameters.values()
    except (TypeError, ValueError):  # a compiled callable that tells nothing about itself
        return {}
    return {p.name: p.default for p in parameters if p.default is not p.empty}
