"""Golden results of the command line: what a change of structure must reproduce to the bit.

``python tests/goldens/golden_command_line.py --write`` writes the goldens again, for a change that is meant to move
them: ``numbers.json`` holds the SHA-256 of what seeded runs wrote, ``interface.txt`` what `--help`, `cagsr reference`
and mistakes print.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from accelerate.state import AcceleratorState

sys.path.insert(0, str(Path(__file__).parents[1]))

import golden_losses as golden

import tiny

HERE = Path(__file__).parent
NUMBERS, INTERFACE = HERE / "numbers.json", HERE / "interface.txt"
# What differs between two runs that are the same.
TIMES = {"seconds", "tokens_per_second", "memory", "id", "started", "git", "written", "identity"}
SMALL = [
    "data.task=slots",
    "data.count=11",
    "data.evaluation_count=5",
    "train.steps=3",
    "train.prompts_per_step=2",
    "train.micro_batch=6",
    "train.evaluate_every=2",
    "sampling.candidates=3",
    "sampling.max_new_tokens=7",
]
REWARD = (
    "reward.terms=[{signal: coverage, weight: 4, standardise: none}, {signal: surprise}, "
    "{signal: repetition, standardise: batch}, {signal: unfinished, weight: 0.5, standardise: none}]"
)
# Every pair of an architecture, an algorithm and an observer.
RUNS = [
    ("t5", "grpo", "reference"),
    ("t5", "ppo", "policy"),
    ("llama", "grpo", "policy"),
    ("llama", "ppo", "reference"),
]
COMMANDS = (
    "demo",
    "sft",
    "plan",
    "train",
    "export",
    "eval",
    "lm-eval",
    "compare",
    "score",
    "calibrate",
    "probe",
    "rate",
    "report",
    "reference",
)
MISTAKES = [
    ["train"],
    ["trian"],
    ["train", "--config", "no.yaml"],
    ["train", "--config", "twice.yaml"],
    ["train", "--config", "misspelt.yaml"],
    ["train", "--config", "broken.yaml"],
    ["train", "data.task=slotz"],
    ["train", "data.source=none.jsonl", "model.name=llama"],
    ["train", "data.source=empty.jsonl", "model.name=llama"],
    ["train", "data.source=bad.jsonl", "model.name=llama", "run.directory=r"],
    ["train", "data.source=other.jsonl", "model.name=llama", "run.directory=r"],
    ["train", "data.source=good.jsonl"],
    ["train", "data.source=good.jsonl", "model.name=none", "run.directory=r"],
    ["train", "data.source=good.jsonl", "model.name=llama", "data.holdout_column=promt", "run.directory=r"],
    *(
        ["train", "data.task=slots", given]
        for given in (
            "train.learing_rate=1",
            "train.learning_rate=-1",
            "train.learning_rate=.nan",
            "train.steps=many",
            "train.steps",
            "model.learning_rate=0.1",
            "reward.terms=[{signal: covrage}]",
            "reward.terms=[{signal: focus, options: {directon: x}}]",
            "reward.terms=[{signal: repetition, options: {n: many}}]",
            "reward.terms=[{signal: nosuchmodule.f}]",
            "reward.terms=[]",
            "reward.preset=robst",
            "data.checker=slotz",
            "reward.salience={kind: span, pattern: '['}",
            "sampling.candidates=1",
            "sampling.temperature=0",
            "algorithm.minibatches=3",
            "algorithm.kl_coefficient=-1",
            "train.warmup_steps=1000",
            "sampling.engine=vllm",
            "model.dtype=bfloat16",
            "model.lora={path: none, r: 3}",
            "run.trackers=[nosuch]",
            "run.directory=file.txt",
            "run.directory=used",
        )
    ),
    ["eval", "data.task=slots"],
    ["eval", "a=none", "data.task=slots"],
    ["lm-eval", "none", "--tasks", "arc_easy", "--python", "none"],
    ["compare", "data.task=slots", "compare.systems=[cagsr-grp]"],
    ["compare", "data.task=slots", "compare.seeds=[1, 1]"],
    ["compare", "data.task=slots", "compare.control=lexicl"],
    ["score", "none.jsonl", "model.name=llama"],
    ["score", "good.jsonl", "model.name=llama"],
    ["calibrate", "data.task=slots", "--labels", "3"],
    ["probe", "data.task=slots", "sampling.candidates=1"],
    ["rate", "none", "--raters", "anna"],
    ["rate", "used"],
    ["report", "none"],
    ["doctor", "none"],
    ["demo", "train.steps=x"],
]


def numbers() -> dict[str, str]:
    """Name -> SHA-256 of every file, table and printed row whose numbers a structure must not move."""
    found: dict[str, str] = {}
    with _workplace(), _one_thread():
        for model, algorithm, observer in RUNS:
            run = f"{model}-{algorithm}-{observer}"
            given = [f"model.name={model}", f"algorithm.name={algorithm}", f"reward.observer={observer}"]
            given += ["algorithm.epochs=2", "algorithm.minibatches=2"] if algorithm == "ppo" else []
            _expect_success("train", *SMALL, REWARD, *given, f"run.directory={run}")
            for name in ("metrics", "candidates", "evaluations"):
                found[f"{run} {name}"] = _hash(_rows(Path(run, f"{name}.jsonl")))
            found[f"{run} weights"] = _file_hash(Path(run, "model/model.safetensors"))
        found["report of a run"] = _hash(_page_data("t5-grpo-reference"))
        pairs = [
            {"prompt": "city lyon day monday", "response": text} for text in ("lyon", "monday in lyon", "a")
        ]
        Path("pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        for model in ("t5", "llama"):
            out = _expect_success(
                "score", "pairs.jsonl", f"model.name={model}", "reward.preset=robust", SMALL[-1]
            )
            found[f"score by {model}"] = _hash([json.loads(line) for line in out.splitlines()])
        few = "compare.systems=[no-rl, cagsr-grpo, sft-best]"
        _expect_success("compare", *SMALL, "model.name=t5", few, "compare.seeds=[0]", "compare.control=no-rl")
        summary = json.loads(Path("runs/compare/summary.json").read_text())
        for part in ("systems", "differences", "sampled", "length_matched"):
            found[f"compare {part}"] = _hash(summary[part])
        found["report of a comparison"] = _hash(_page_data("runs/compare"))
        for name, arguments in {
            "eval": ["a=t5", "b=t5-grpo-reference/model", *SMALL],
            "probe": ["model.name=t5", "--prompts", "5", *SMALL],
            "calibrate": ["data.task=slots", "--prompts", "6"],  # the base that ships
        }.items():
            out = _expect_success(name, *arguments, "--json")
            kept = {key: value for key, value in json.loads(out).items() if key != "cost"}
            found[name] = _hash(kept)
    return found


MACHINE = re.compile(r"^(python|device:) .*(\n  .*)*", re.MULTILINE)
"""What `cagsr doctor` says of versions and of the processor."""


def interface() -> str:
    """What `--help`, `cagsr reference` and every one of MISTAKES print, one after the other."""
    parts = []
    with _workplace():
        _write_mistaken_files()
        for arguments in [
            ["--help"],
            *([command, "--help"] for command in COMMANDS),
            ["reference"],
            *MISTAKES,
        ]:
            code, out, err = _typed(*arguments)
            text = MACHINE.sub(r"\1 ...", "\n".join(line.rstrip() for line in (out + err).splitlines()))
            parts.append(f"$ cagsr {' '.join(arguments)}\n{text}\n[exit {code}]\n")
    return "\n".join(parts)


def _write_mistaken_files() -> None:
    files = {
        "twice.yaml": "data:\n  task: slots\ntrain:\n  steps: 3\n  steps: 4\n",
        "misspelt.yaml": "data:\n  task: slots\ntrain:\n  learing_rate: 1.0e-4\n",
        "broken.yaml": "data: [slots\n",
        "empty.jsonl": "",
        "good.jsonl": '{"prompt": "city lyon"}\n{"prompt": "day monday"}\n',
        "bad.jsonl": '{"prompt": "city lyon"}\n{"prompt": " "}\n{"prompt": 7}\n{bad\n',
        "other.jsonl": '{"promt": "city lyon"}\n',
        "file.txt": "mine",
        "used/thesis.tex": "mine",
    }
    for name, text in files.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _page_data(run: str) -> Any:
    """The data that stands in a report, for its script; every step of the run took a second."""
    for path in Path(run).rglob("metrics.jsonl"):
        rows = [row | dict.fromkeys(TIMES & row.keys(), 1.0) for row in _rows(path)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _expect_success("report", run)
    page = Path(run, "report.html").read_text()
    found = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert found, "a report holds its data as JSON"
    return json.loads(found[1])


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(_without_times(value), sort_keys=True).encode()).hexdigest()


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(inner) for key, inner in value.items() if key not in TIMES}
    return [_without_times(inner) for inner in value] if isinstance(value, list) else value


def _file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextlib.contextmanager
def _workplace() -> Iterator[None]:
    """An empty working directory with the models ``t5`` and ``llama``, and a terminal of 80 columns."""
    before = Path.cwd()
    quiet = {"COLUMNS": "80", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "TERM": "dumb"}
    with tempfile.TemporaryDirectory() as directory, mock.patch.dict(os.environ, quiet):
        os.environ.pop("FORCE_COLOR", None)
        tiny.save_models(Path(directory))
        os.chdir(directory)
        try:
            yield
        finally:
            os.chdir(before)
            shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """The order of a sum is part of its result."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _expect_success(*arguments: str) -> str:
    code, out, err = _typed(*arguments)
    assert code == 0, f"cagsr {' '.join(arguments)} ended with {code}: {err}"
    return out


def _typed(*arguments: str) -> tuple[int, str, str]:
    """``cagsr ARGUMENTS`` in this process: exit code, standard output, standard error."""
    main: Callable[[], None] = import_module("cagsr.cli.main").main
    # Accelerate keeps the precision of the first Accelerator of a process; every command starts a new one.
    AcceleratorState._reset_state(reset_partial_state=True)
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["cagsr", *arguments]),
        mock.patch.object(sys, "path", [*sys.path]),
        mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", True),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
            code: Any = 0
        except SystemExit as ended:
            code = ended.code
    return code or 0, out.getvalue(), err.getvalue()


def read() -> dict[str, Any]:
    return json.loads(NUMBERS.read_text(encoding="utf-8"))


if __name__ == "__main__":
    if sys.argv[1:] not in (["--write"], ["--check"]):
        sys.exit(__doc__)
    printed, hashed = interface(), numbers()
    if sys.argv[1] == "--write":
        INTERFACE.write_text(printed, encoding="utf-8")
        written = json.dumps({"belongs_to": golden.belongs_to(), "sha256": hashed}, indent=1)
        NUMBERS.write_text(written + "\n", encoding="utf-8")
    changed = sorted(name for name, value in hashed.items() if read()["sha256"].get(name) != value)
    print("numbers changed:", ", ".join(changed) or "none")
    print("interface changed:", printed != INTERFACE.read_text(encoding="utf-8"))
