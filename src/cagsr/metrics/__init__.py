"""Metrics of responses and the statistics that compare them; a new metric is a line in RESPONSE_METRICS."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from cagsr.metrics.bootstrap import Interval, difference, interval, summarise
from cagsr.metrics.foreign_names import foreign_names
from cagsr.metrics.slots import METRICS, slot_metrics
from cagsr.metrics.text import distinct, word_count
from cagsr.metrics.titles import DIRECTIONS

__all__ = [
    "METRICS",
    "RESPONSE_METRICS",
    "Interval",
    "ResponseMetric",
    "difference",
    "higher_is_better",
    "interval",
    "slot_metrics",
    "summarise",
]


class ResponseMetric(NamedTuple):
    """Metric of one response that needs nothing but its text and its row, the data row with the ``prompt``.

    function          ``function(row, response) -> float``, finite
    higher_is_better  None: more is neither better nor worse
    """

    function: Callable[[Mapping[str, Any], str], float]
    higher_is_better: bool | None = None


RESPONSE_METRICS: dict[str, ResponseMetric] = {
    "words": ResponseMetric(lambda row, response: word_count(response)),
    "distinct_2": ResponseMetric(lambda row, response: distinct(response), higher_is_better=True),
    "foreign_names": ResponseMetric(
        lambda row, response: foreign_names(row["prompt"], response), higher_is_better=False
    ),
}
"""Measured of every response by evaluation, comparison and the Trainer's reports."""


def higher_is_better(metric: str) -> bool | None:
    """Which way a metric is better; None where more is neither, and for a metric that is not known."""
    if metric in RESPONSE_METRICS:
        return RESPONSE_METRICS[metric].higher_is_better
    return DIRECTIONS.get(metric)
