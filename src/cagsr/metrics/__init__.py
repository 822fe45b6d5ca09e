"""Metrics of responses: slots, ROUGE-L, relevance, an LLM judge, human ratings; bootstrap intervals of all of them."""

from cagsr.metrics.bootstrap import Interval, difference, interval, summarise
from cagsr.metrics.slots import METRICS, slot_metrics

__all__ = ["METRICS", "Interval", "difference", "interval", "slot_metrics", "summarise"]
