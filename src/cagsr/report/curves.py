"""Curves of a report: which metrics are drawn, with which limits. `cagsr.report.plot` lays them out."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from cagsr.metrics.titles import metric_title
from cagsr.report.names import MEANINGS
from cagsr.report.read import Run
from cagsr.report.text import visible

__all__ = ["Chart", "Line", "Section", "Threshold", "axes", "curves"]

TRAINING = (
    "reward",
    "reward_spread",
    "kl",
    "entropy",
    "length",
    "repetition",
    "shuffled",
    "finished",
    "empty",
)
# In the order of interest; evaluations have any metric, so that the others follow.
EVALUATED = ("reward", "slot_error_rate", "coverage", "clean", "hallucination", "rouge_l", "length")
# Drawn only where some value is not 0.
SILENT = ("empty",)
UNDRAWN = ("step", "tokens", "kl_response")
PARTS = "signal/"
EVALUATION = "evaluation/"
# Points of a run that the script gets: steps that stand for minutes or tokens.
MOST_KEPT = 2000
# What the collapse watch compares with the first step of a run.
RELATIVE = ("length", "entropy")


@dataclass(frozen=True)
class Line:
    """The curve of one run: steps and values, and the ends of the intervals where there are any."""

    run: int
    x: list[float]
    y: list[float]
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Threshold:
    """A limit of the collapse watch, and its value."""

    value: float
    says: str


@dataclass(frozen=True)
class Chart:
    """A chart of one metric: a line for each run, and the limits of the collapse watch."""

    key: str
    title: str
    meaning: str
    lines: list[Line]
    limits: list[Threshold] = field(default_factory=list)


@dataclass(frozen=True)
class Section:
    """A titled section of charts."""

    title: str
    charts: list[Chart]
    folded: bool = False


def curves(runs: Sequence[Run]) -> list[Section]:
    """Sections of charts, each with a line a run; metrics that no run has are left out."""
    names = list(dict.fromkeys(name for run in runs for row in run.metrics for name in row))
    parts = [name for name in names if name.startswith(PARTS)]
    ends = {name for name in names if name.endswith(("/low", "/high"))}
    evaluated = [name for name in names if name.startswith(EVALUATION) and name not in ends]
    evaluated.sort(key=_interest)
    shown = {*TRAINING, *parts, *evaluated, *ends, *UNDRAWN}
    sections = [
        Section("Training", _charts(runs, [name for name in TRAINING if name in names])),
        Section("What the reward is made of", _charts(runs, parts)),
        Section("Evaluation on development prompts", _charts(runs, evaluated)),
        Section("Optimizer and speed", _charts(runs, [n for n in names if n not in shown]), folded=True),
    ]
    drawn = [section for section in sections if section.charts]
    return [replace(section, folded=section.folded and len(drawn) > 1) for section in drawn]


def axes(run: Run) -> dict[str, list[float]]:
    """What a step may stand for on the axis of the curves: steps, and minutes and response tokens up to each of them.

    Minutes are those of the steps, without evaluations and pauses.
    """
    rows = [row for row in run.metrics if "seconds" in row and "tokens" in row]
    minutes = accumulate((row["seconds"] / 60 for row in rows), initial=0.0)
    tokens = accumulate((row["tokens"] for row in rows), initial=0.0)
    found = {"step": [0.0, *(row["step"] for row in rows)], "minutes": list(minutes), "tokens": list(tokens)}
    stride = -(-len(rows) // MOST_KEPT) or 1
    return {name: [float(f"{value:.6g}") for value in values[::stride]] for name, values in found.items()}


def _interest(name: str) -> int:
    short = name.removeprefix(EVALUATION)
    return EVALUATED.index(short) if short in EVALUATED else len(EVALUATED)


def _charts(runs: Sequence[Run], names: Sequence[str]) -> list[Chart]:
    charts = []
    for name in names:
        lines = [line for number, run in enumerate(runs) if (line := _line(run, number, name)).x]
        if name in SILENT and not any(value for line in lines for value in line.y):
            continue
        title = visible(metric_title(name))
        charts.append(Chart(visible(name), title, MEANINGS.get(name, ""), lines, _limits(runs, name)))
    return charts


def _line(run: Run, number: int, name: str) -> Line:
    rows = [row for row in run.metrics if name in row]
    low, high = f"{name}/low", f"{name}/high"
    with_ends = bool(rows) and all(low in row and high in row for row in rows)
    return Line(
        number,
        [row["step"] for row in rows],
        [row[name] for row in rows],
        [row[low] for row in rows] if with_ends else [],
        [row[high] for row in rows] if with_ends else [],
    )


def _limits(runs: Sequence[Run], name: str) -> list[Threshold]:
    """Limits of the first run that watches this number, as `cagsr.training.collapse_watch` reads them."""
    for run in runs:
        watched = run.config.get("watch")
        settings = watched.get(name) if isinstance(watched, dict) else None
        limit = settings.get("limit") if isinstance(settings, dict) else None
        if not isinstance(limit, int | float) or isinstance(limit, bool) or not limit:
            continue
        if name not in RELATIVE:
            return [Threshold(limit, f"limit {limit:g}")]
        first = next((row[name] for row in run.metrics if name in row), None)
        if first is None:
            continue
        if name == "entropy":
            return [Threshold(limit * first, f"limit: {limit:g} × first")]
        return [
            Threshold(limit * first, f"limit: {limit:g} × first"),
            Threshold(first / limit, f"limit: first / {limit:g}"),
        ]
    return []
