"""Table of what lm-evaluation-harness found of a run's base and result: did it forget?"""

from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from cagsr.report.names import number
from cagsr.report.read import Run
from cagsr.report.text import visible
from cagsr.runs.directory import LM_EVAL

__all__ = ["elsewhere"]

MARKS = {True: "▲", False: "▼"}


class Row(BaseModel):
    """A row of the table in lm-eval.json (`experiments.lm_harness`)."""

    model_config = ConfigDict(allow_inf_nan=False)

    task: str
    metric: str
    filter: str
    samples: int | None
    higher_is_better: bool | None
    base: float
    base_stderr: float | None
    result: float
    result_stderr: float | None
    difference: float
    low: float | None
    high: float | None


def elsewhere(run: Run) -> list[dict[str, Any]]:
    """Rows of a run's table, drawn; empty where nothing was measured. What is damaged joins the run's problems."""
    try:
        rows = TypeAdapter(list[Row]).validate_python(run.elsewhere.get("table", []))
    except ValidationError:
        run.problems.append(f"{LM_EVAL} is not as expected; what was measured elsewhere is left out.")
        return []
    return [
        {
            "task": visible(row.task),
            "metric": visible(row.metric if row.filter == "none" else f"{row.metric}, {row.filter}"),
            "samples": "" if row.samples is None else f"{row.samples:,}",
            "base": _figure(row.base, row.base_stderr),
            "result": _figure(row.result, row.result_stderr),
            "difference": number(row.difference, exact=False),
            "interval": ""
            if row.low is None or row.high is None
            else f"[{number(row.low, exact=False)}, {number(row.high, exact=False)}] {_seen(row)}",
        }
        for row in rows
    ]


def _figure(value: float, error: float | None) -> str:
    return number(value, exact=False) + ("" if error is None else f" ± {number(error, exact=False)}")


def _seen(row: Row) -> str:
    """▲ better, ▼ worse; empty where the interval has 0 in it or nobody says what is better."""
    seen = row.low is not None and row.high is not None and (row.low > 0 or row.high < 0)
    return (
        ""
        if not seen or row.higher_is_better is None
        else MARKS[(row.difference > 0) == row.higher_is_better]
    )
