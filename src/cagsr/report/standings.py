"""Comparison tables with drawn intervals: values, and differences to the base and to a control."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cagsr.evaluation.leaderboard import PRIMARY, compared_with
from cagsr.metrics import higher_is_better
from cagsr.metrics.titles import metric_title
from cagsr.report.names import number
from cagsr.report.plot import Scale
from cagsr.report.read import OURS, Interval, Run, Summary, Systems
from cagsr.report.text import visible

__all__ = ["costs", "headline", "standings"]

WIDTH, EDGE = 108, 5
SIGNIFICANT = 0.05
BETTER = {True: "higher is better", False: "lower is better", None: ""}


def standings(summary: Summary) -> list[dict[str, Any]]:
    """Tables, the one of values first; each has columns and rows of drawn cells.

    A difference counts as seen where its interval leaves out 0 and Holm's corrected p, if there is one, is small.
    """
    tables = [_table("Held out, greedy", summary.systems, relative=False)]
    for other in compared_with(summary.systems, summary.differences):
        pairs = {
            name: summary.differences[f"{name}-{other}"]
            for name in summary.systems
            if f"{name}-{other}" in summary.differences
        }
        tables.append(_table(f"Difference to {other}, paired", pairs, relative=True))
    if summary.sampled:
        tables.append(_table("Sampled", summary.sampled, relative=False))
    opinions = {name: metrics for name, metrics in summary.opinions.get("systems", {}).items() if metrics}
    if opinions:
        tables.append(_table("Opinions", opinions, relative=False))
    return [table for table in tables if table["columns"]]


def headline(run: Run) -> dict[str, Any] | None:
    """Parts of a sentence on what the run changed: on held-out prompts where measured, else during training."""
    if run.summary is None or len(run.summary.systems) < 2:
        return _during_training(run)
    systems = run.summary.systems
    base = next(iter(systems))
    metric = next((name for name in PRIMARY if name in systems[base]), None)
    ours = next((name for name in systems if name.startswith(OURS)), None)
    if metric is None or ours is None or metric not in systems[ours]:
        return None
    before, after = systems[base][metric], systems[ours][metric]
    found = run.summary.differences.get(f"{ours}-{base}", {}).get(metric)
    return {
        "metric": f"{visible(metric_title(metric))}, held out",
        "base": visible(base),
        "system": visible(ours),
        "before": number(before.mean, exact=False),
        "after": number(after.mean, exact=False),
        "difference": found and _signed(found.mean),
        "low": None if found is None or found.low is None else _signed(found.low),
        "high": None if found is None or found.high is None else _signed(found.high),
        "verdict": found and _verdict(found, metric),
    }


def _during_training(run: Run) -> dict[str, Any] | None:
    """Headline from the first evaluation, that of the base, to the last one."""
    names = [f"evaluation/{name}" for name in (*PRIMARY, "reward")]
    rows = [row for row in run.metrics if any(name in row for name in names)]
    metric = next((name for name in names if rows and name in rows[0] and name in rows[-1]), None)
    if metric is None or len(rows) < 2:
        return None
    return {
        "metric": f"{visible(metric_title(metric))}, development prompts",
        "base": f"step {rows[0]['step']:.0f}",
        "system": f"step {rows[-1]['step']:.0f}",
        "before": number(rows[0][metric], exact=False),
        "after": number(rows[-1][metric], exact=False),
        "difference": None,
    }


def _table(name: str, systems: Systems, relative: bool) -> dict[str, Any]:
    measured = dict.fromkeys(metric for values in systems.values() for metric in values)
    same = {metric: value for metric in measured if (value := _same_for_all(systems, metric)) is not None}
    metrics = sorted(
        (metric for metric in measured if metric not in same),
        key=lambda metric: PRIMARY.index(metric) if metric in PRIMARY else len(PRIMARY),
    )
    scales = {
        metric: _scale([values[metric] for values in systems.values() if metric in values], relative)
        for metric in metrics
    }
    return {
        "title": visible(name),
        "relative": relative,
        "columns": [
            {
                "title": visible(metric_title(metric)),
                "better": BETTER[higher_is_better(metric)],
                "zero": scales[metric](0.0) if relative else None,
            }
            for metric in metrics
        ],
        "rows": [
            {
                "system": visible(system),
                "cells": [
                    _cell(values[metric], metric, scales[metric], relative) if metric in values else None
                    for metric in metrics
                ],
            }
            for system, values in systems.items()
        ],
        "same": [
            f"{visible(metric_title(metric))} {number(value, exact=False)}" for metric, value in same.items()
        ],
        "width": WIDTH,
    }


def _same_for_all(systems: Systems, metric: str) -> float | None:
    """The value of a metric that is equal for every system and resample, and so not drawn; None for others."""
    values = {
        value
        for metrics in systems.values()
        if metric in metrics
        for value in (metrics[metric].mean, metrics[metric].low, metrics[metric].high)
    }
    return values.pop() if len(values) == 1 and len(systems) > 1 else None


def _cell(found: Interval, metric: str, scale: Scale, relative: bool) -> dict[str, Any]:
    low, high = _drawn(found)
    return {
        "mean": _signed(found.mean) if relative else number(found.mean, exact=False),
        "ends": _ends(found, _signed if relative else None),
        "at": scale(found.mean),
        "from": scale(low),
        "width": max(round(scale(high) - scale(low), 1), 1.0),
        "verdict": _verdict(found, metric) if relative else None,
    }


def _ends(found: Interval, signed: Callable[[float], str] | None) -> str:
    if found.low is None or found.high is None:
        return "one prompt"
    if signed:
        return f"[{signed(found.low)}, {signed(found.high)}]"
    return f"{number(found.low, exact=False)} – {number(found.high, exact=False)}"


def _drawn(found: Interval) -> tuple[float, float]:
    return (found.mean, found.mean) if found.low is None or found.high is None else (found.low, found.high)


def _verdict(found: Interval, metric: str) -> str:
    """Verdict on a difference: better, worse, higher, lower, or empty where none is seen."""
    corrected = found.p_holm is None or found.p_holm < SIGNIFICANT
    if found.low is None or found.high is None or found.low <= 0 <= found.high or not corrected:
        return ""
    higher = higher_is_better(metric)
    if higher is None:
        return "higher" if found.mean > 0 else "lower"
    return "better" if (found.mean > 0) == higher else "worse"


def _scale(found: Sequence[Interval], relative: bool) -> Scale:
    drawn = [_drawn(one) for one in found]
    low, high = min(low for low, _ in drawn), max(high for _, high in drawn)
    if relative:
        low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        low, high = low - 1.0, high + 1.0
    return Scale(low, high, EDGE, WIDTH - EDGE)


def _signed(value: float) -> str:
    text = number(value, exact=False)
    return text if text.startswith("−") or text == "0" else f"+{text}"


def costs(costs: Mapping[str, Mapping[str, float]]) -> dict[str, Any] | None:
    """Table of what each system cost: one column a kind of cost."""
    kinds = list(dict.fromkeys(kind for cost in costs.values() for kind in cost))
    if not kinds:
        return None
    return {
        "columns": [visible(metric_title(kind)) for kind in kinds],
        "rows": [
            (visible(system), [f"{cost[kind]:,.0f}" if kind in cost else "" for kind in kinds])
            for system, cost in costs.items()
        ],
    }
