"""Run directories made by hand: what tests of the report stand on."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

PROMPT = "name : Vaults ; food : English"
# One token a word or mark, and one without text at the end.
TOKENS = [[0, 4], [5, 6], [7, 13], [14, 15], [16, 20], [21, 22], [23, 30], [0, 0]]
SALIENCE = [1, 0, 1, 0, 1, 0, 1, 0]
CONFIG = """\
data: {task: slots, source: null}
model: {name: null}
reward: {preset: robust, terms: null, observer: reference}
algorithm: {name: grpo}
sampling: {candidates: 2}
train: {steps: 3, prompts_per_step: 2, seed: 7}
watch:
  kl: {limit: 1.0}
  length: {limit: 3.0}
  entropy: {limit: 0.1}
  repetition: {limit: 0.5}
"""


def candidate(
    response: str, reward: float, looks: Sequence[Mapping[int, float]] = (), **changes: Any
) -> dict:
    """A row of candidates.jsonl. ``looks`` is, for each word, what it gave to which prompt token."""
    spans, start = [], 0
    for word in response.split(" ") if response else []:
        spans.append([start, start + len(word)])
        start += len(word) + 1
    row: dict[str, Any] = {
        "step": 1,
        "prompt_index": 5,
        "prompt": PROMPT,
        "response": response,
        "finished": True,
        "signals": {"coverage": reward / 2, "repetition": 0.0},
        "weighted": {"coverage": reward, "repetition": 0.0},
        "reward": reward,
        "advantage": reward - 1,
        "tokens": TOKENS,
        "salience": SALIENCE,
        "attended": [max([look.get(j, 0.0) for look in looks], default=0.0) for j in range(8)],
    }
    if looks:
        flat = [[number for entry in look.items() for number in entry] for look in looks]
        row["attention"] = {"response": spans, "weights": flat}
    return row | changes


def group(step: int = 1, index: int = 5) -> list[dict]:
    """Two candidates: one says one of the values, the other both; ``food`` is hardly looked at by either."""
    where = {"step": step, "prompt_index": index}
    return [
        candidate("Vaults is small", 1.0, [{2: 0.5}, {0: 0.2}, {0: 0.05, 4: 0.1}], **where),
        candidate("Vaults serves English", 3.0, [{2: 0.6}, {0: 0.3}, {6: 0.48, 7: 0.3}], **where),
    ]


def explained_group() -> list[dict]:
    """As `group`, with a knockout: both say the name, neither the food, one of them by a hair."""
    first, second = group()
    pieces = [[0, 2], [4, 6]]
    return [
        first | {"segments": pieces, "explained": [3.0, -0.4]},
        second | {"segments": pieces, "explained": [9.1, 2.99]},
    ]


def pieces_group() -> list[dict]:
    """As `group`, with the pieces of the prompt: nobody looks at the name, one looks at the food, the better one."""
    first, second = group()
    pieces = [[0, 2], [4, 5, 6]]
    return [
        first | {"segments": pieces, "looked": [0.0129, 0.00412]},
        second | {"segments": pieces, "looked": [0.0131, 0.0403]},
    ]


def metrics(steps: int = 3) -> list[dict]:
    rows: list[dict] = [{"step": 0, **evaluation(0.4)}]
    for step in range(1, steps + 1):
        numbers = {
            "reward": 2 + step / 10,
            "kl": 0.1,
            "length": 20.0 + step,
            "entropy": 0.7,
            "repetition": 0.01,
        }
        numbers |= {
            "signal/coverage": 0.5 + step / 100,
            "loss": 0.2,
            "empty": 0.0,
            "tokens": 100.0,
            "seconds": 2.0,
        }
        rows.append({"step": step, **numbers})
    return [*rows, {"step": steps, **evaluation(0.1)}, {"step": 2, "warning": "step 2: kl is 2, above 1"}]


def evaluation(errors: float) -> dict[str, float]:
    row = {"reward": 1 - errors, "slot_error_rate": errors}
    ends = {
        f"{name}/{end}": value + by
        for name, value in row.items()
        for end, by in (("low", -0.1), ("high", 0.1))
    }
    return {f"evaluation/{name}": value for name, value in (row | ends).items()}


def interval(mean: float, reach: float = 0.05, **more: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - reach, "high": mean + reach, **more}


def responses(system: str, texts: Sequence[str], errors: Sequence[float]) -> list[dict]:
    return [
        {
            "system": system,
            "prompt": f"prompt {number}",
            "response": text,
            "slot_error_rate": error,
            "length": float(len(text.split())),
        }
        for number, (text, error) in enumerate(zip(texts, errors, strict=True))
    ]


SUMMARY = {
    "seconds": 90.0,
    "systems": {
        "base": {"slot_error_rate": interval(0.4), "length": interval(20, 1), "exact_match": interval(0, 0)},
        "cagsr": {"slot_error_rate": interval(0.1), "length": interval(28, 1), "exact_match": interval(0, 0)},
    },
    "differences": {"cagsr-base": {"slot_error_rate": interval(-0.3), "length": interval(8, 1)}},
}


def write(path: Path, rows: Iterable[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="ascii")


def make_run(path: Path, **changes: Any) -> Path:
    """A finished training run; ``changes`` replace the content of a file, by its name without ending."""
    about = {
        "id": "7f3a",
        "started": "2026-11-24T10:00:00+00:00",
        "versions": {"torch": "2.13.0"},
        "git": None,
    }
    write(path / "metrics.jsonl", changes.get("metrics", metrics()))
    write(path / "candidates.jsonl", changes.get("candidates", [*group(1), *group(2, 6)]))
    (path / "run.json").write_text(json.dumps(changes.get("run", about)))
    (path / "config.yaml").write_text(changes.get("config", CONFIG))
    (path / "summary.json").write_text(json.dumps(changes.get("summary", {"steps": 3, "seconds": 6.0})))
    return path


def make_demo(path: Path) -> Path:
    """A run that was compared with its base on three held-out prompts."""
    make_run(path, summary=SUMMARY)
    before, after = ("a b c", "a a a a a", "c d"), ("a b c d", "a", "d e")
    rows = [*responses("base", before, (0.5, 0.2, 0.4)), *responses("cagsr", after, (0.0, 0.6, 0.3))]
    write(path / "responses.jsonl", rows)
    return path


def evaluations(*steps: tuple[int, Sequence[str], Sequence[float]]) -> list[dict]:
    """Rows of evaluations.jsonl: of each step the responses to its prompts, and their rewards."""
    return [
        {"step": step, "prompt": f"prompt {number}", "response": text, "reward": reward}
        for step, texts, rewards in steps
        for number, (text, reward) in enumerate(zip(texts, rewards, strict=True))
    ]


def make_evaluated(path: Path) -> Path:
    """A training run that was compared with nothing, evaluated three times; it was best after step 2."""
    summary = {"steps": 3, "seconds": 6.0, "best": {"step": 2.0, "reward": 0.6}}
    make_run(path, summary=summary, candidates=explained_group())
    rows = evaluations(
        (0, ("a b", "x"), (0.0, 0.0)), (2, ("a b d", "x"), (0.6, 0.6)), (3, ("a b c", "x"), (0.5, 0.1))
    )
    write(path / "evaluations.jsonl", rows)
    return path


HEADS = {
    "all": {"7": [0.25, -0.5], "0": [0.0, 0.1], "2": [-0.2, 0.4]},
    "weights": {"7": [1.0, 0.0], "2": [0.0, 1.0]},
    "agreement": 0.325,
    "pieces": 23,
    "follows": 0.782,
    "undecided": 0.27,
}


def make_learnt(path: Path, heads: Any = HEADS) -> Path:
    """A training run whose reward reads heads that were learnt."""
    make_run(path, candidates=pieces_group())
    (path / "heads.json").write_text(json.dumps(heads))
    return path


def make_comparison(path: Path) -> Path:
    """Two systems with a seed each, one of them trained."""
    make_run(path, summary=SUMMARY | {"cost": {"cagsr": {"seconds": 9.0, "labels": 0.0}}})
    for name in ("metrics.jsonl", "candidates.jsonl"):
        (path / name).unlink()
    for system, errors in (("base", (0.5, 0.2)), ("cagsr", (0.0, 0.6))):
        place = path / system / "seed-0"
        if system == "cagsr":
            make_run(place)
        rows = responses("", ("a b", f"{system} says"), errors)
        write(place / "responses.jsonl", [{k: v for k, v in row.items() if k != "system"} for row in rows])
    return path
