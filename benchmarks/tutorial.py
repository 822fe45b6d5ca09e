"""Types the commands of docs/tutorial.md, and of two guides, and keeps what they say in docs/tutorial.json.

    python -m benchmarks.tutorial                     # all, about ten minutes on one core; then fills in the pages
    python -m benchmarks.tutorial --only probe own

Every command runs on one thread. Another kind of CPU rounds otherwise, and what a rounding decides early is amplified:
figures of the same command on another machine differ in their second digit.
"""

import argparse
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.pages import fill_all
from benchmarks.record import processor

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "docs" / "tutorial.json"
PAGE = ROOT / "docs" / "tutorial.md"
PLACE = ROOT / "runs" / "tutorial"

DEMO = "cagsr demo"
CAUSAL = "cagsr demo --model causal --directory runs/causal"
LEXICAL = "cagsr demo --directory runs/lexical reward.preset=lexical"
PROBE = "cagsr probe data.task=slots-paraphrase"
TRAIN = "cagsr train --config own.yaml"
EVAL = "cagsr eval before=runs/demo/model after=runs/own/model --config own.yaml --split train"
COMPARE = (
    "cagsr compare --config examples/paper.yaml --quick compare.systems=[no-rl,cagsr-grpo,lexical,best-of-k]"
)

Part = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS)
    )
    PLACE.mkdir(parents=True, exist_ok=True)
    for name in parser.parse_args().only:
        command, found = PARTS[name]
        print(f"{name}: {command}", flush=True)
        part = {**_provenance(command), **found(command)}
        record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
        record = {key: part if key == name else record[key] for key in PARTS if key == name or key in record}
        RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for problem in fill_all(write=True):
        print(problem)


def _provenance(command: str) -> Part:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    machine = f"{processor()}, one thread; Python {platform.python_version()}, {packages}"
    return {"measured": datetime.now(UTC).date().isoformat(), "command": command, "machine": machine}


def _typed(command: str) -> list[str]:
    """What a command said, line by line: first to the terminal, then on standard output."""
    done = _run("-m", *shlex.split(command))
    return [line.rstrip() for line in (done.stderr + done.stdout).splitlines()]


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "80", "NO_COLOR": "1"}
    environment["PYTHONPATH"] = str(ROOT / "src")
    words = [sys.executable, *arguments]
    done = subprocess.run(words, cwd=PLACE, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\n{done.stdout}{done.stderr}")
    return done


def _block(lines: Sequence[str], start: str, end: str = "") -> list[str]:
    """From the line that begins with ``start`` to the next that is ``end``, without it."""
    first = next(number for number, line in enumerate(lines) if line.startswith(start))
    last = next(number for number, line in enumerate(lines) if number > first and line == end)
    return list(lines[first:last])


def warnings(lines: Sequence[str]) -> list[str]:
    """Warnings with the lines that they go on in, which are indented."""
    found: list[str] = []
    within = False
    for line in lines:
        within = line.startswith("warning: ") or (within and line.startswith("  "))
        found += [line] * within
    return found


def _demo(command: str) -> Part:
    lines = _typed(command)
    # How long it will take depends on what else the machine does.
    log = [LEFT.sub("", line) for line in lines if re.match(r"evaluation at step 0|step 1/|step 10/", line)]
    directory = re.search(r"--directory (\S+)", command)
    summary = json.loads((PLACE / (directory[1] if directory else "runs/demo") / "summary.json").read_text())
    table = _block(lines, "                slot")
    metrics = [name for name in TITLES if name in summary["systems"]["base"]]
    rows = [
        [system, *(_cell(values[metric]) for metric in metrics)]
        for system, values in summary["systems"].items()
    ]
    change = summary["differences"]["cagsr-base"]
    rows.append(["cagsr - base", *(_cell(change[metric]) for metric in metrics)])
    return {
        "log": log,
        "warnings": warnings(lines),
        "table": table,
        "columns": ["system", *(TITLES[metric] for metric in metrics)],
        "rows": rows,
    }


LEFT = re.compile(r"  \d+ (?:s|min|h) left")
TITLES = {
    "slot_error_rate": "slot errors",
    "coverage": "said",
    "perfect": "all slots",
    "clean": "clean",
    "hallucination": "invented",
    "repetition": "repeated",
    "length": "tokens",
}


def _cell(value: dict[str, float]) -> str:
    return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def _candidates(_: str) -> Part:
    """The page's first Python block, run where the demo has run."""
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert code
    said = _run("-c", code[1]).stdout
    return {"text": said.splitlines()}


def _probe(command: str) -> Part:
    lines = _typed(command)
    found = json.loads(_run("-m", *shlex.split(command), "--json").stdout)
    measured = {**found["rewards"], **found["signals"]}
    rows = [
        [name, f"{one['quality']['auc']['mean']:.3f}"]
        for name, one in measured.items()
        if one["quality"]["auc"]
    ]
    return {
        "quality": [line for line in lines if line.lstrip().startswith("quality:")],
        "rewards": _block(lines, " " * 36),
        "adversaries": _block(lines, " " * 23 + "first", BELOW_ADVERSARIES),
        "verdict": _block(lines, "GO: "),
        "columns": ["name", "AUC"],
        "rows": rows,
    }


BELOW_ADVERSARIES = "  How often it scores higher than the base's own sample, ties half; from .5 on"


def _own(command: str) -> Part:
    """Train on the page's own files, then compare before and after."""
    page = PAGE.read_text(encoding="utf-8")
    for name, text in re.findall(r'```\w+ title="([^"]+)"\n(.*?)```', page, re.DOTALL):
        (PLACE / name).write_text(text, encoding="utf-8")
    _typed(TRAIN)
    lines = _typed(command)
    return {"text": _block([*lines, ""], "after against before, paired:")}


BELOW_COMPARISON = "runs/paper-quick/: table.md and table.csv have every metric, interval and cost"


def _compare(command: str) -> Part:
    if not (PLACE / "examples").exists():
        (PLACE / "examples").symlink_to(ROOT / "examples")
    return {"text": _block(_typed(command), "slots-paraphrase, held out", BELOW_COMPARISON)}


PARTS: dict[str, tuple[str, Callable[[str], Part]]] = {
    "demo": (DEMO, _demo),
    "demo-causal": (CAUSAL, _demo),
    "candidates": ("the Python block of the tutorial's step 4", _candidates),
    "lexical": (LEXICAL, _demo),
    "probe": (PROBE, _probe),
    "own": (EVAL, _own),
    "compare": (COMPARE, _compare),
}

if __name__ == "__main__":
    main()
