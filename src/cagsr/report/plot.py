"""Layout of charts in pixels. The templates write it as SVG, and the style sheet colours it.

Curves are drawn here, as inline SVG, and not by a plotting library in the page: they can be read without a script,
print sharply, follow dark mode by themselves, need no licence beside ours, and take some kilobytes where Plotly's
script alone would take most of the five megabytes that a demo's report may have. The page's own script only adds what
a pointer or the arrow keys ask for.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cagsr.report.curves import Chart, Line, Threshold
from cagsr.report.names import number, tick

__all__ = ["HEIGHT", "WIDTH", "Scale", "picture"]

WIDTH, HEIGHT = 320, 176
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 12, 24
# A chart has no room for more points than pixels: longer lines are averaged to so many. A range of steps that a
# reader chooses is drawn from more.
MOST_POINTS, MOST_KEPT = 400, 2000
SMOOTHED_FROM = 30
# A limit that would press the curve flat is named at the edge instead of drawn.
STRETCH = 2.0


@dataclass(frozen=True)
class Scale:
    """Linear scale from values between ``low`` and ``high`` to pixels between ``start`` and ``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, about: int) -> list[float]:
        """Round numbers between the ends, at distances of 1, 2 or 5 times a power of ten."""
        width = (self.high - self.low) or 1.0
        power = 10.0 ** math.floor(math.log10(width / about))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= width / about * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [
            round(n * step, 12)
            for n in range(first, first + 3 * about)
            if n * step <= self.high + 1e-9 * width
        ]


def picture(chart: Chart, identity: str) -> dict[str, Any]:
    """Template variables of a chart; ``data`` is what the script needs to read values off it."""
    lines = [_thinned(line, MOST_POINTS) for line in chart.lines]
    x = Scale(*_span([at for line in lines for at in line.x]), LEFT, WIDTH - RIGHT)
    values = [value for line in lines for value in (*line.y, *line.low, *line.high)]
    inside = [limit for limit in chart.limits if _fits(limit, values)]
    y = Scale(*_padded([*values, *(limit.value for limit in inside)]), HEIGHT - BOTTOM, TOP)
    window = max(3, len(max(lines, key=lambda line: len(line.x)).x) // 15) | 1
    return {
        "id": identity,
        "title": chart.title,
        "meaning": chart.meaning,
        "says": _says(chart),
        "x_ticks": [(x(at), tick(at)) for at in x.ticks(4) if float(at).is_integer()],
        "y_ticks": [(y(at), tick(at)) for at in y.ticks(4)],
        "lines": [_drawn(line, x, y, window) for line in lines],
        "limits": [(y(limit.value), limit.says) for limit in inside],
        "beyond": [
            limit.says + (" (far above)" if limit.value > max(values) else " (far below)")
            for limit in chart.limits
            if limit not in inside
        ],
        "data": {
            "x": [x.low, x.high, x.start, x.end],
            "y": [y.low, y.high, y.start, y.end],
            "lines": [_kept(_thinned(line, MOST_KEPT)) for line in chart.lines],
            "limits": [[limit.value, limit.says] for limit in chart.limits],
        },
    }


def _drawn(line: Line, x: Scale, y: Scale, window: int) -> dict[str, Any]:
    points = [(x(at), y(value)) for at, value in zip(line.x, line.y, strict=True)]
    smooth = []
    if len(line.y) >= SMOOTHED_FROM and not line.low:
        smooth = [(x(at), y(value)) for at, value in zip(line.x, _running_mean(line.y, window), strict=True)]
    ends = zip(line.x, line.low, line.high, strict=False)
    return {
        "run": line.run,
        "path": _path(points),
        "smooth": _path(smooth),
        "dots": points if len(points) <= 12 else [],
        "bars": [(x(at), y(low), y(high)) for at, low, high in ends],
    }


def _kept(line: Line) -> dict[str, Any]:
    """The points of a line that the script reads values off, and draws a range of steps from."""
    ends = {"low": line.low, "high": line.high} if line.low else {}
    numbers = {"y": line.y, **ends}
    return {"run": line.run, "x": line.x} | {
        name: [float(f"{value:.4g}") for value in values] for name, values in numbers.items()
    }


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{at:g},{value:g}" for at, value in points)


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    reach = window // 2
    parts = (values[max(0, at - reach) : at + reach + 1] for at in range(len(values)))
    return [sum(part) / len(part) for part in parts]


def _thinned(line: Line, most: int) -> Line:
    size = -(-len(line.x) // most)
    if size <= 1:
        return line
    starts = range(0, len(line.x), size)

    def means(values: list[float]) -> list[float]:
        return [sum(part) / len(part) for start in starts if (part := values[start : start + size])]

    return Line(line.run, [line.x[start] for start in starts], *map(means, (line.y, line.low, line.high)))


def _span(values: Sequence[float]) -> tuple[float, float]:
    return (min(values), max(values)) if min(values) < max(values) else (values[0] - 0.5, values[0] + 0.5)


def _padded(values: Sequence[float]) -> tuple[float, float]:
    """The span with a small margin; values of one sign keep 0 in sight where it is near."""
    low, high = min(values), max(values)
    width = (high - low) or abs(high) * 0.2 or 1.0
    if 0 <= low < width:
        return 0.0, high + 0.06 * width
    if -width < high <= 0:
        return low - 0.06 * width, 0.0
    return low - 0.06 * width, high + 0.06 * width


def _fits(limit: Threshold, values: Sequence[float]) -> bool:
    low, high = min(values), max(values)
    width = max(high - min(low, 0.0), max(high, 0.0) - low) or 1.0
    return low - STRETCH * width <= limit.value <= high + STRETCH * width


def _says(chart: Chart) -> str:
    """The text alternative of a chart, one sentence."""
    parts = [
        f"from {number(line.y[0])} at step {line.x[0]:g} to {number(line.y[-1])} at step {line.x[-1]:g}, "
        f"lowest {number(min(line.y))}, highest {number(max(line.y))}"
        for line in chart.lines
    ]
    return f"{chart.title}: " + "; ".join(parts)
