"""Reader of run directories for reports: missing or damaged records are listed as problems, the rest is read.

A report is wanted most when something went wrong, so that nothing here stops at a torn line: it is left out, counted,
and the page says so. Only a directory without any record is refused.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, TypeAdapter, ValidationError

from cagsr.errors import InputError
from cagsr.rewards.heads_found import Heads
from cagsr.runs.directory import (
    CANDIDATES,
    CONFIG,
    EVALUATIONS,
    HEADS,
    LM_EVAL,
    METRICS,
    RESPONSES,
    RUN,
    SUMMARY,
)
from cagsr.runs.turns import RecordedTurn

__all__ = [
    "FILES",
    "INSIDE",
    "OURS",
    "Candidate",
    "Interval",
    "Response",
    "Run",
    "Summary",
    "Systems",
    "read_run",
]

# Largest number of trained systems of a comparison that are drawn as runs.
DRAWN = 6
OURS = "cagsr"
# Runs inside a run: those of a comparison, and the controls of a demo.
INSIDE = ("*/seed-*", "controls/*")
FILES = (RUN, CONFIG, METRICS, CANDIDATES, EVALUATIONS, RESPONSES, SUMMARY)


def _text(value: Any) -> str:
    # Not pydantic's own check: it refuses half surrogates, which a model may write.
    if not isinstance(value, str):
        raise ValueError("text is expected")
    return value


Text = Annotated[str, PlainValidator(_text)]
Spans = list[tuple[int, int]]
Kind = TypeVar("Kind", bound=BaseModel)


class Record(BaseModel):
    """Base class of the rows of a run's files."""

    model_config = ConfigDict(allow_inf_nan=False)


class Attention(Record):
    """Attention of a candidate, as candidates.jsonl holds it."""

    response: Spans
    weights: list[list[float]]


class Candidate(Record):
    """A row of candidates.jsonl (`cagsr.training.candidate_log`). Runs of earlier versions lack the last fields."""

    step: int
    prompt_index: int = 0
    prompt: Text
    turns: list[RecordedTurn] = Field(default_factory=list)
    response: Text
    finished: bool = True
    signals: dict[str, float] = Field(default_factory=dict)
    weighted: dict[str, float] = Field(default_factory=dict)
    reward: float
    advantage: float = 0.0
    tokens: Spans = Field(default_factory=list)
    salience: list[float] = Field(default_factory=list)
    attended: list[float] = Field(default_factory=list)
    segments: list[list[int]] = Field(default_factory=list)
    explained: list[float] = Field(default_factory=list)
    looked: list[float] = Field(default_factory=list)
    attention: Attention | None = None


class Response(Record):
    """A row of responses.jsonl; every other number in it is a metric of the response."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    prompt: Text
    turns: list[RecordedTurn] = Field(default_factory=list)
    response: Text
    system: Text = ""

    @property
    def metrics(self) -> dict[str, float]:
        found = self.model_extra or {}
        return {name: float(value) for name, value in found.items() if _is_number(value)}


class Evaluated(Response):
    """A row of evaluations.jsonl: a response of the model as it was after ``step``."""

    step: int


class Interval(Record):
    """A mean and its interval in summary.json; None at both ends where there was a single prompt."""

    mean: float
    low: float | None
    high: float | None
    p_holm: float | None = None


Systems = dict[str, dict[str, Interval]]


class Summary(BaseModel):
    """summary.json of a comparison or a demo: what it measured, and what it cost."""

    systems: Systems
    differences: Systems = Field(default_factory=dict)
    sampled: Systems = Field(default_factory=dict)
    opinions: dict[str, Systems] = Field(default_factory=dict)
    cost: dict[str, dict[str, float]] = Field(default_factory=dict)
    not_for_this_data: dict[str, str] = Field(default_factory=dict)


@dataclass
class Run:
    """Content of a run directory.

    metrics      {step, name: number}, a row a step or an evaluation
    warnings     (step, message)
    outcome      summary.json as it is; ``summary`` where it is that of a comparison or a demo
    responses    (system, seed) -> rows on held-out prompts
    evaluated    step -> rows on development prompts; 0: the base
    heads        the attention heads that its reward reads, or was chosen by, where they were learnt
    chosen       the preset that was chosen for its base and why, where the config left that open
    elsewhere    lm-eval.json as it is
    children     runs inside a comparison: DRAWN of the trained systems, ours first; ``not_drawn`` names the others
    problems     what could not be read, in sentences
    """

    path: Path
    name: str
    about: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    metrics: list[dict[str, float]] = field(default_factory=list)
    warnings: list[tuple[int, str]] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)
    outcome: dict[str, Any] = field(default_factory=dict)
    summary: Summary | None = None
    responses: dict[tuple[str, str], list[Response]] = field(default_factory=dict)
    evaluated: dict[int, list[Response]] = field(default_factory=dict)
    heads: Heads | None = None
    chosen: str | None = None
    elsewhere: dict[str, Any] = field(default_factory=dict)
    children: list["Run"] = field(default_factory=list)
    not_drawn: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """The last step with a metric."""
        return max((int(row["step"]) for row in self.metrics), default=0)


def read_run(path: str | Path, name: str | None = None) -> Run:
    """Read the run in a directory. Raises InputError where there is none."""
    path = Path(path)
    if not any((path / file).is_file() for file in FILES):
        raise InputError(f"{path} holds no run: none of {', '.join(FILES)} is there. Name a run's directory.")
    run = Run(path, name or path.resolve().name)
    run.about = _mapping(run, RUN)
    run.config_text = _read(run, CONFIG)
    run.config = _config(run)
    run.outcome = _mapping(run, SUMMARY, needed=False)
    if "systems" in run.outcome:
        run.summary = _validated(run, SUMMARY, run.outcome, Summary, "the comparison is")
    run.elsewhere = _mapping(run, LM_EVAL, needed=False)
    found = _mapping(run, HEADS, needed=False)
    preset, reason = found.get("preset"), found.get("reason")
    if isinstance(preset, str) and isinstance(reason, str):
        run.chosen = f"{preset}: {reason}"
    if found and (
        run.chosen is None or "weights" in found
    ):  # of a base that told no heads apart it says why alone
        run.heads = _validated(run, HEADS, found, Heads, "the heads are")
    for row in _rows(run, METRICS, TypeAdapter(dict[str, Any])):
        _add_metrics(run, row)
    run.candidates = list(_rows(run, CANDIDATES, TypeAdapter(Candidate)))
    for row in _rows(run, RESPONSES, TypeAdapter(Response)):
        run.responses.setdefault((row.system, ""), []).append(row)
    for row in _rows(run, EVALUATIONS, TypeAdapter(Evaluated)):
        run.evaluated.setdefault(row.step, []).append(row)
    _add_children(run)
    return run


def _add_metrics(run: Run, row: Mapping[str, Any]) -> None:
    step = row.get("step")
    if not isinstance(step, int | float) or not _is_number(step):
        run.problems.append(f"{METRICS}: a row has no step and is left out.")
        return
    if isinstance(row.get("warning"), str):
        run.warnings.append((int(step), row["warning"]))
    numbers = {name: float(value) for name, value in row.items() if _is_number(value)}
    if len(numbers) > 1:
        run.metrics.append(numbers)


def _add_children(run: Run) -> None:
    """Add, to a comparison or a demo, every system's responses, and the first trained systems with their curves.

    A comparison that is going on has no summary yet, only directories.
    """
    # A name from a file is no path: only what is a directory right here is looked into.
    here: dict[str, list[Path]] = {}
    for pattern in INSIDE:
        for place in sorted(run.path.glob(pattern)):
            system = place.parent.name if place.name.startswith("seed-") else place.name
            here.setdefault(system, []).append(place)
    trained = {}
    for system in run.summary.systems if run.summary else here:
        places = here.get(system, [])
        for place in places:
            child = Run(place, system)
            seed = place.name.removeprefix("seed-")
            found = list(_rows(child, RESPONSES, TypeAdapter(Response)))
            if found:
                run.responses[system, seed] = found
            run.problems += [f"{system}, seed {seed}: {problem}" for problem in child.problems]
        if places and (places[0] / CANDIDATES).is_file():
            trained[system] = places[0]
    names = sorted(trained, key=lambda system: not system.startswith(OURS))
    run.children = [read_run(trained[system], system) for system in names[:DRAWN]]
    run.not_drawn = names[DRAWN:]


def _validated(run: Run, name: str, found: dict[str, Any], kind: type[Kind], what: str) -> Kind | None:
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        run.problems.append(f"{name}: {place} is not as expected; {what} left out.")
        return None


def _config(run: Run) -> dict[str, Any]:
    try:
        found = yaml.safe_load(run.config_text) or {}
    except (yaml.YAMLError, ValueError, RecursionError):
        found = None
    if isinstance(found, dict):
        return found
    run.problems.append(f"{CONFIG} is damaged; limits and settings are left out.")
    return {}


def _mapping(run: Run, name: str, needed: bool = True) -> dict[str, Any]:
    text = _read(run, name, needed)
    try:
        found = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict):
        return found
    run.problems.append(f"{name} is damaged and left out.")
    return {}


def _rows(run: Run, name: str, adapter: TypeAdapter[Any]) -> Iterator[Any]:
    damaged = []
    for number, line in enumerate(_read(run, name, needed=False).split("\n"), start=1):
        if not line:
            continue
        try:
            yield adapter.validate_python(json.loads(line, parse_constant=_not_finite))
        except (ValueError, RecursionError):
            damaged.append(number)
    if damaged:
        several = f"lines {damaged[0]} and {len(damaged) - 1} more are" if len(damaged) > 1 else "it is"
        place = f"{name}:{damaged[0]}"
        run.problems.append(f"{place} is damaged or torn; {several} left out.")


def _not_finite(constant: str) -> float:
    raise ValueError(f"{constant} is no number of a record")


def _read(run: Run, name: str, needed: bool = True) -> str:
    try:
        return (run.path / name).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        if needed:
            run.problems.append(f"{name} is missing.")
    except OSError as error:
        run.problems.append(f"{name} cannot be read: {error.strerror}.")
    return ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
