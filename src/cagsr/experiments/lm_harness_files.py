"""Files that lm-evaluation-harness 0.4.13 writes: results of tasks, and a row for each sample.

Source: https://github.com/EleutherAI/lm-evaluation-harness.
"""

import json
import math
from pathlib import Path
from typing import Any

from cagsr.runs.directory import fingerprint

__all__ = ["found_in", "is_number"]


def found_in(file: Path) -> dict[str, Any]:
    """Version, results and, by task, the numbers of each sample that lie behind them, of a file of results.

    Raises KeyError, ValueError, TypeError, AttributeError or OSError for files of another version.
    """
    written, date = _read(file), file.stem.removeprefix("results_")
    return {
        "lm_eval_version": written.get("lm_eval_version"),
        **{key: written[key] for key in ("results", "n-samples", "higher_is_better", "versions")},
        "samples": {
            task: _samples(file.with_name(f"samples_{task}_{date}.jsonl")) for task in written["n-samples"]
        },
    }


def _read(path: Path) -> dict[str, Any]:
    # It writes NaN where a figure is none.
    return dict(json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None))


def _samples(file: Path) -> dict[str, Any]:
    """``docs``, a digest of a task's documents by filter, and ``values``, a number for each by metric and filter.

    Metrics that are no number of a sample, as those of a corpus, are left out.
    """
    rows: dict[str, dict[int, dict[str, Any]]] = {}
    for line in file.read_text(encoding="utf-8").split("\n"):
        if line:
            row = json.loads(line)
            rows.setdefault(row["filter"], {})[row["doc_id"]] = row
    docs, values = {}, {}
    for of_filter, by_id in rows.items():
        ordered = [by_id[number] for number in sorted(by_id)]
        docs[of_filter] = fingerprint(row["doc_hash"] for row in ordered)
        for metric in ordered[0]["metrics"]:
            numbers: list[Any] = [row.get(metric) for row in ordered]
            if all(map(is_number, numbers)):
                values[f"{metric},{of_filter}"] = list(map(float, numbers))
    return {"docs": docs, "values": values}


def is_number(value: Any) -> bool:
    """Whether a figure is one: lm-eval writes "N/A" and NaN too."""
    return isinstance(value, int | float) and math.isfinite(value)
