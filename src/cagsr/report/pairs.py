"""Responses side by side: of several systems, or of one model at several steps, to the same prompts."""

from collections.abc import Mapping, Sequence
from typing import Any

from cagsr.evaluation.leaderboard import PRIMARY
from cagsr.metrics import higher_is_better
from cagsr.metrics.titles import metric_title
from cagsr.report.read import Response, Run
from cagsr.report.text import visible
from cagsr.runs.turns import by_role

__all__ = ["before_and_after", "comparable"]

MOST_PROMPTS = 500
# Without references and checker the reward itself orders pairs.
REWARD = "reward"
HELD_OUT = "Greedy responses to held-out prompts."
DEVELOPMENT = (
    "Greedy responses to development prompts: none is trained on, but best/ is chosen by them, so they flatter it a "
    "little."
)


def before_and_after(run: Run) -> dict[str, Any] | None:
    """`comparable` of a run's held-out prompts, or else of its evaluations; ``what`` says which prompts these are."""
    found, what = comparable(run.responses), HELD_OUT
    if found is None:
        found, what = comparable(_by_step(run)), DEVELOPMENT
    return found and found | {"what": what}


def _by_step(run: Run) -> dict[tuple[str, str], list[Response]]:
    """Responses of the model at each evaluated step, under a readable name; the base first."""
    last, best = max(run.evaluated, default=0), run.outcome.get("best")
    chosen = best.get("step") if isinstance(best, dict) else None
    named = {}
    for step, rows in sorted(run.evaluated.items()):
        marks = [text for text, holds in (("last", step == last), ("best/", step == chosen)) if holds]
        name = f"step {step}" + (f" ({', '.join(marks)})" if marks else "") if step else "base"
        named[name, ""] = rows
    return named


def comparable(responses: Mapping[tuple[str, str], Sequence[Response]]) -> dict[str, Any] | None:
    """Responses side by side: prompts, and each system's responses and metrics; None with fewer than two systems.

    ``primary`` is the metric that orders pairs. Systems with other prompts than the first are left out.
    """
    systems = [(name, seed, rows[:MOST_PROMPTS]) for (name, seed), rows in responses.items() if rows]
    if not systems:
        return None
    prompts = [row.prompt for row in systems[0][2]]
    systems = [entry for entry in systems if [row.prompt for row in entry[2]] == prompts]
    if len(systems) < 2:
        return None
    measured = [row.metrics for entry in systems for row in entry[2]]
    metrics = [name for name in measured[0] if all(name in values for values in measured)]
    return {
        "prompts": [visible(by_role(row.prompt, row.turns)[0]) for row in systems[0][2]],
        "metrics": [
            {
                "name": visible(metric_title(f"evaluation/{name}")),
                "higher": higher_is_better(name),
                "key": visible(name),
            }
            for name in metrics
        ],
        "primary": next((metrics.index(name) for name in (*PRIMARY, REWARD) if name in metrics), None),
        "systems": [
            {
                "name": visible(name + (f", seed {seed}" if seed else "")),
                "responses": [visible(row.response) for row in rows],
                "values": [[float(f"{row.metrics[name]:.4g}") for name in metrics] for row in rows],
            }
            for name, seed, rows in systems
        ],
    }
