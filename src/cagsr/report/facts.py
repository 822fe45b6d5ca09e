"""Key facts of a run: outcome, model, data and versions."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cagsr.report.names import number
from cagsr.report.read import Run
from cagsr.report.text import visible

__all__ = ["differences", "run_facts", "settings"]

Fact = tuple[str, str]


def run_facts(run: Run) -> list[Fact]:
    """Facts at the top of a report, (name, value); only those that are known."""
    reward, train, algorithm = (_part(run.config, name) for name in ("reward", "train", "algorithm"))
    sampling, model, data = (_part(run.config, name) for name in ("sampling", "model", "data"))
    terms = reward.get("terms")
    signals = (
        [str(term.get("signal")) for term in terms if isinstance(term, dict)]
        if isinstance(terms, list)
        else []
    )
    prompts, candidates = train.get("prompts_per_step"), sampling.get("candidates")
    tokens = sum(row.get("tokens", 0.0) for row in run.metrics)
    memory = max((row.get("memory", 0.0) for row in run.metrics), default=0.0)
    found: list[tuple[str, Any]] = [
        ("state", _state(run)),
        ("model", model.get("name") or (f"base of {data['task']}" if data.get("task") else None)),
        ("data", data.get("task") or _sources(data.get("source"))),
        ("reward", ", ".join(signals) if signals else reward.get("preset")),
        ("chosen for this base", run.chosen),
        ("observer", reward.get("observer")),
        ("algorithm", algorithm.get("name")),
        ("a step", f"{prompts} prompts × {candidates} candidates" if prompts and candidates else None),
        ("time", _duration(run)),
        ("generated", f"{tokens:,.0f} tokens" if tokens else None),
        ("peak memory", f"{memory:.2f} GB" if memory else None),
        ("seed", train.get("seed")),
    ]
    return [(name, visible(str(value))) for name, value in found if value is not None and value != ""]


def settings(run: Run) -> list[Fact]:
    """Provenance of a run: its id, its start, its commit, the digests and versions of its identity."""
    found = [(name, run.about.get(name)) for name in ("id", "started", "git")]
    found += _identity(run).items()
    return [(visible(str(name)), visible(str(value))) for name, value in found if value is not None]


def differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Settings, digests and versions that are not the same for all of several runs, with the value of each run."""
    flat = [{**_flat(run.config), **_identity(run), "git": run.about.get("git")} for run in runs]
    names = [name for name in dict.fromkeys(name for one in flat for name in one) if name != "run.directory"]
    shown = {name: [visible(_written(one.get(name))) for one in flat] for name in names}
    return [(visible(name), values) for name, values in shown.items() if len(set(values)) > 1]


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= (
            _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
        )
    return found


def _identity(run: Run) -> dict[str, Any]:
    """What a run stands on beside its config, whose keys are in the identity too."""
    found = _part(run.about, "identity")
    return {str(name): value for name, value in found.items() if str(name).split(".")[0] not in run.config}


def _written(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, default=str)


def _state(run: Run) -> str:
    if "stopped" in run.outcome:
        return f"stopped: {run.outcome['stopped']}"
    asked = _part(run.config, "train").get("steps")
    if run.outcome:
        return f"finished, {run.steps} steps" if run.steps else "finished"
    return f"at step {run.steps} of {asked}" if asked else f"at step {run.steps}"


def _duration(run: Run) -> str | None:
    seconds = run.outcome.get("seconds")
    if not isinstance(seconds, int | float):
        seconds = sum(row.get("seconds", 0.0) for row in run.metrics)
    if seconds >= 5400:
        return f"{number(seconds / 3600)} hours"
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds" if seconds else None


def _sources(given: Any) -> Any:
    """A data set's name as it is, several with their weights."""
    if not isinstance(given, list):
        return given
    parts = [one if isinstance(one, Mapping) else {"path": one} for one in given]
    return " + ".join(
        " × ".join(str(part[key]) for key in ("weight", "path") if part.get(key)) for part in parts
    )


def _part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name)
    return found if isinstance(found, Mapping) else {}
