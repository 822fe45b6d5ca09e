"""Before and after: what systems answered to the same held-out prompts."""

from collections.abc import Mapping, Sequence
from typing import Any

from cagsr.leaderboard import PRIMARY
from cagsr.metrics.directions import HIGHER_IS_BETTER
from cagsr.report.names import title
from cagsr.report.read import Response
from cagsr.report.text import visible

__all__ = ["comparable"]

MOST_PROMPTS = 500


def comparable(responses: Mapping[tuple[str, str], Sequence[Response]]) -> dict[str, Any] | None:
    """Prompts, and for each system the responses and metrics in their order; None with fewer than two systems.

    ``primary`` is the metric that orders pairs. Systems with other prompts than the first are left out.
    """
    systems = [(name, seed, rows[:MOST_PROMPTS]) for (name, seed), rows in responses.items() if rows]
    if not systems:
        return None
    prompts = [row.prompt for row in systems[0][2]]
    systems = [entry for entry in systems if [row.prompt for row in entry[2]] == prompts]
    if len(systems) < 2:
        return None
    measured = [
        name for name in systems[0][2][0].metrics if all(name in row.metrics for row in systems[0][2])
    ]
    metrics = [name for name in measured if all(name in row.metrics for entry in systems for row in entry[2])]
    return {
        "prompts": [visible(prompt) for prompt in prompts],
        "metrics": [
            {"name": visible(title(name)), "higher": HIGHER_IS_BETTER.get(name), "key": visible(name)}
            for name in metrics
        ],
        "primary": next((metrics.index(name) for name in PRIMARY if name in metrics), None),
        "systems": [
            {
                "name": visible(name + (f", seed {seed}" if seed else "")),
                "responses": [visible(row.response) for row in rows],
                "values": [[float(f"{row.metrics[name]:.4g}") for name in metrics] for row in rows],
            }
            for name, seed, rows in systems
        ],
    }
