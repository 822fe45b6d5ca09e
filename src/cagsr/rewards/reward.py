"""Weighted reward: signals are measured, standardised and combined to one number a response.

A signal that fails is never a zero: it stops the run and is named.
"""

__all__ = ["SMALLEST_UNIT", "Reward"]

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cagsr.config.named import checked_options
from cagsr.config.schema import Term
from cagsr.errors import CagsrError, InputError, SignalError, ran_out_of_memory
from cagsr.rewards.signals import BY_TOKEN, SIGNALS, resolve
from cagsr.types import Evidence, Signal, Wanted

# Below this spread, relative to the values, candidates differ by float32 rounding only.
ROUNDING = 1e-6
EPSILON = 1e-6
# A hundredth of [0, 1], where most signals lie. What hardly ever varies (a base that never repeats itself) is no
# unit to measure a model in: the first repetition would outweigh all the rest.
SMALLEST_UNIT = 0.01


class Reward:
    """A weighted sum of standardised signals.

    Everything that can be wrong with names and options is found here, before any model loads: raises
    InputError for an unknown signal (``extra`` holds those that a task supplies), an unknown or missing
    option, or a value of the wrong type.
    """

    def __init__(self, terms: Sequence[Term], extra: Mapping[str, Signal] | None = None) -> None:
        if not terms:
            raise InputError("reward: no terms; name at least one signal or a preset")
        self.terms = tuple(terms)
        self._signals = [resolve(term.signal, extra) for term in self.terms]
        self._options = [
            checked_options("signal", term.signal, signal, term.options, "evidence")
            for term, signal in zip(self.terms, self._signals, strict=True)
        ]

    @property
    def names(self) -> tuple[str, ...]:
        """The C columns of ``measure``, unique: a signal used twice is also called ``name#2``."""
        seen: Counter[str] = Counter()
        names = []
        for term in self.terms:
            seen[term.signal] += 1
            again = f"#{seen[term.signal]}" if seen[term.signal] > 1 else ""
            names.append(term.signal + again)
        return tuple(names)

    def wanted(self, salience: Any) -> Wanted:
        """What an observation must hold for these signals; everything for one that is not of `SIGNALS`."""
        own = any(signal not in SIGNALS.values() for signal in self._signals)
        return Wanted(
            by_token=own or not BY_TOKEN.isdisjoint(self._signals),
            prompt_logprobs=own or SIGNALS["grounding"] in self._signals,
            pieces=getattr(salience, "pieces", None),
        )

    @torch.no_grad()
    def measure(self, evidence: Evidence) -> Tensor:
        """[n C] float32: every signal of every row of this evidence, raw.

        Raises SignalError when a signal raises, or returns anything but n finite numbers; running out of memory
        in a signal's own pass is no fault of the signal and is raised as it is.
        """
        columns = []
        for name, signal, options in zip(self.names, self._signals, self._options, strict=True):
            try:
                values = signal(evidence, **options)
            except CagsrError:
                raise
            except Exception as error:
                if ran_out_of_memory(error):
                    raise
                indices = [prompt.index for prompt in evidence.rollout.prompts]
                raise SignalError(
                    f"signal {name!r} failed on {len(evidence.rollout.responses)} rows "
                    f"(prompt indices {indices[0]} to {indices[-1]}): {type(error).__name__}: {error}"
                ) from error
            columns.append(_checked_values(name, values, evidence))
        return torch.stack(columns, dim=-1)

    def combine(self, signals_NC: Tensor, group_size: int) -> Tensor:
        """[N C] -> reward [N] float32: standardise each column as its term says, then the weighted sum.

        ``group`` subtracts the group's mean and divides by its standard deviation (of the population, so
        that a group of one is defined); a group without spread gets exactly 0. ``batch`` does the same over
        all N rows, which must then be the rows of all processes. Raises SignalError for values that are not
        finite and ValueError for a wrong shape.

        Source: each component standardised in its group, then added.
        """
        return self._weighted_CN(signals_NC, group_size).sum(0).float().to(signals_NC.device)

    def weighted(self, signals_NC: Tensor, group_size: int) -> Tensor:
        """[N C] -> [N C] float32: what each signal adds to the reward of ``combine``, whose errors it raises."""
        return self._weighted_CN(signals_NC, group_size).T.float().to(signals_NC.device)

    def _weighted_CN(self, signals_NC: Tensor, group_size: int) -> Tensor:
        rows, columns = signals_NC.shape
        if columns != len(self.terms) or rows % group_size:
            raise ValueError(f"expected [groups * {group_size}, {len(self.terms)}], got {[rows, columns]}")
        if not signals_NC.isfinite().all():
            row, column = (~signals_NC.isfinite()).nonzero()[0].tolist()
            raise SignalError(
                f"signal {self.names[column]!r} is {float(signals_NC[row, column])} in row {row}; it must be finite"
            )
        return self._weigh(
            column if size is None else _standardised(column, size)
            for size, column in zip(self._sizes(rows, group_size), _columns(signals_NC), strict=True)
        )

    def spread(self, signals_NC: Tensor, group_size: int) -> Tensor:
        """[C] float64, at least SMALLEST_UNIT: the unit that ``combine`` measured each column in, on average.

        The root of the mean variance within a group (``group``) or over all rows (``batch``); 1 for a raw term.
        """
        rows = len(signals_NC)
        units = [
            1.0 if size is None else float(column.view(-1, size).var(-1, correction=0).mean().sqrt())
            for size, column in zip(self._sizes(rows, group_size), _columns(signals_NC), strict=True)
        ]
        return torch.tensor(units, dtype=torch.float64).clamp(min=SMALLEST_UNIT)

    def relative(self, signals: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
        """[... C] -> [...] float64: the weighted sum of each signal's change from ``mean`` [C], in ``spread``s [C].

        ``combine`` compares candidates with one another; this compares models with a fixed point. A raw term is
        measured as it is, whatever its spread.
        """
        raw = torch.tensor([term.standardise == "none" for term in self.terms], device=signals.device)
        moved = (signals.double() - mean) / spread.double().where(~raw, 1.0)
        return self._weigh(moved.unbind(-1)).sum(0)

    def _sizes(self, rows: int, group_size: int) -> list[int | None]:
        """How many rows each term is standardised over; None: raw."""
        return [{"group": group_size, "batch": rows, "none": None}[term.standardise] for term in self.terms]

    def _weigh(self, columns: Iterable[Tensor]) -> Tensor:
        return torch.stack([term.weight * column for term, column in zip(self.terms, columns, strict=True)])


def _columns(signals_NC: Tensor) -> Tensor:
    """[C N] float64, on the CPU: not every device has that type, and the data is small."""
    return signals_NC.cpu().double().T.contiguous()


def _standardised(values_N: Tensor, size: int) -> Tensor:
    groups = values_N.view(-1, size)
    centred = groups - groups.mean(-1, keepdim=True)
    deviation = centred.square().mean(-1, keepdim=True).sqrt()
    spread = groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True)
    is_rounding = spread <= ROUNDING * groups.abs().amax(-1, keepdim=True)
    return (centred / (deviation + EPSILON)).where(~is_rounding, 0).flatten()


def _checked_values(name: str, values: Any, evidence: Evidence) -> Tensor:
    """[n] float32. Raises SignalError naming the signal and, where there is one, the row and its prompt."""
    rows = len(evidence.rollout.responses)
    if not isinstance(values, Tensor):
        raise SignalError(
            f"signal {name!r} returned {type(values).__name__}, expected a tensor of shape [{rows}]"
        )
    if values.shape != (rows,):
        raise SignalError(
            f"signal {name!r} returned shape {list(values.shape)} for {rows} rows, expected [{rows}]"
        )
    if values.is_complex():
        raise SignalError(f"signal {name!r} returned complex numbers, expected float32")
    values = values.to(evidence.salience.device, torch.float32)
    finite = values.isfinite()
    if not finite.all():
        row = int((~finite).nonzero()[0])
        size = evidence.rollout.group_size
        prompt = evidence.rollout.prompts[row // size]
        raise SignalError(
            f"signal {name!r} is {float(values[row])} in row {row} "
            f"(prompt index {prompt.index}, candidate {row % size}); it must be finite: correct the signal, or take it "
            "out of reward.terms"
        )
    return values
