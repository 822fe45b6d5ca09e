"""Metrics of one response that need nothing but its text and its row: one function and one line each."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

__all__ = ["ResponseMetric"]


class ResponseMetric(NamedTuple):
    """``function(row, response) -> float``, finite; ``row`` is the data row of the prompt, with its columns.

    higher_is_better  None: more is neither better nor worse.
    """

    function: Callable[[Mapping[str, Any], str], float]
    higher_is_better: bool | None = None
