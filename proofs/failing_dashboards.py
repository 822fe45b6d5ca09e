"""A dashboard that fails stops no run: it raises at a random call, and the run ends as it does without a dashboard.

Weights, rows and candidates are the same to the bit, and the failure is named once.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import runs
from cases import CASES, Workshop, differences, ending

TITLE = "a dashboard that fails changes nothing of a run"
PROMISE = 20
COUNT = 24

TRACKED = ("run.trackers=[tensorboard]",)
CALLS = {"start": 1, "store_init_configuration": 1, "log": 8, "flush": 5, "finish": 1}
"""Methods that are called so often at least, in every case."""

ERRORS: dict[str, Callable[[], BaseException]] = {
    "an error of its own": lambda: RuntimeError("no route\nto host"),
    "a full disk": lambda: OSError(28, "No space left on device"),
    "sys.exit": lambda: SystemExit(1),
    "a lone surrogate": lambda: ValueError("\ud800"),
}
STRUCK = "struck"


def prove(count: int, random: Random, advance: Callable[..., None]) -> list[str]:
    """The runs, out of ``count``, that a failing dashboard stopped or changed."""
    workshop, failures = Workshop.open(), []
    for item in range(count):
        name = random.choice([name for name, case in CASES.items() if case.command == "train"])
        method, error = random.choice([*CALLS]), random.choice([*ERRORS])
        at = random.randint(1, CALLS[method])
        problem = changed(workshop, name, workshop.fresh(item), method, at, error)
        failures += [f"{name}, {error} at call {at} of {method}: {problem}"] if problem else []
        advance(**{method: 1})
    return failures


def figures(sums: Counter[str]) -> str:
    return ", ".join(f"{sums[method]} {method}" for method in CALLS)


def changed(workshop: Workshop, name: str, cwd: Path, method: str, at: int, error: str) -> str:
    """What is not as without a dashboard, if anything."""
    arguments = CASES[name].arguments(False, TRACKED)
    run = runs.start(arguments, cwd, before=partial(failing, method, at, error))
    code = run.wait(300)
    if code or "Traceback" in run.err:
        return f"ended with {code}: {run.err.strip()[-300:]}"
    if not (cwd / STRUCK).exists():
        return "the call did not come"
    found = ending(cwd / "run")
    summary: Any = found["summary.json"]
    warnings = summary.get("warnings", [])
    if len(warnings) != 1 or not warnings[0].startswith("run.trackers: tensorboard failed "):
        return f"it was not named once: {warnings}"
    return differences(_beside_warnings(found), _beside_warnings(workshop.expected(name)))


def _beside_warnings(found: Mapping[str, Any]) -> dict[str, object]:
    """An ending without the warning, and without the card, which quotes the config."""
    kept = {name: value for name, value in found.items() if not name.endswith("README.md")}
    kept["metrics.jsonl"] = [row for row in found["metrics.jsonl"] if "warning" not in row]
    kept["summary.json"] = {
        name: value for name, value in found["summary.json"].items() if name != "warnings"
    }
    return kept


def failing(method: str, at: int, error: str) -> None:
    """Plant it: the dashboard raises at the ``at``-th call of the method."""
    from accelerate.tracking import TensorBoardTracker
    from torch.utils.tensorboard.writer import SummaryWriter

    of = SummaryWriter if method == "flush" else TensorBoardTracker
    calls, original = [0], getattr(of, method)

    def called(*given: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == at:
            Path(STRUCK).touch()
            raise ERRORS[error]()
        return original(*given, **named)

    setattr(of, method, called)
