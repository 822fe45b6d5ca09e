"""lm-evaluation-harness on a run's base and on its result, each in a process of its own: did the model forget?

Source: https://github.com/EleutherAI/lm-evaluation-harness, the files that version 0.4.13 writes.
"""

import json
import math
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from cagsr.config import Config
from cagsr.errors import InputError, StorageError
from cagsr.experiments.lm_harness_files import found_in, is_number
from cagsr.io.adapters import adapter_at, identity_with_base
from cagsr.io.atomic_write import storing, write_atomically
from cagsr.io.provenance import file_digest, is_gguf
from cagsr.io.terminal import say
from cagsr.metrics.bootstrap import difference
from cagsr.runs.directory import CONFIG, LM_EVAL, RUN, RunDirectory, fingerprint
from cagsr.runs.identity import described, model_of, of_configured
from cagsr.tasks.bases import base_name
from cagsr.training.export import Kind, export

__all__ = ["Settings", "harness", "measure_elsewhere"]

MEND = (
    "Install it into an environment of its own, as it brings some twenty packages (python -m venv harness; "
    "harness/bin/pip install 'lm_eval[hf]'), and name that: --python harness/bin/python"
)

OF_LAUNCHERS = re.compile(
    "RANK|LOCAL_RANK|WORLD_SIZE|LOCAL_WORLD_SIZE|MASTER_.*|TORCHELASTIC_.*|ACCELERATE_.*"
)


@dataclass(frozen=True)
class Settings:
    """What both models are measured by, under lm-eval's own names; None leaves a setting to lm-eval.

    ``dtype`` None is the type of the run's config; "auto" is none, as base and result may lie in different ones.
    """

    tasks: str
    num_fewshot: int | None = None
    limit: float | None = None
    seed: int = 0
    dtype: Kind | None = None
    batch_size: str = "1"
    device: str | None = None
    include_path: str | None = None
    apply_chat_template: bool = False

    def given(self) -> dict[str, Any]:
        """What is not left to lm-eval; 0 is given."""
        return {
            name: value for name, value in asdict(self).items() if value is not None and value is not False
        }

    def arguments(self) -> list[str]:
        """lm-eval's command line of all but the model."""
        flags = {name: value for name, value in self.given().items() if name != "dtype"}
        return [
            part
            for name, value in flags.items()
            for part in (f"--{name}", *([] if value is True else [str(value)]))
        ]


def harness(python: str | None = None) -> list[str]:
    """The command that starts lm-eval: of a Python that has it, or the program on PATH. Raises InputError."""
    if python is None:
        if (program := shutil.which("lm_eval")) is None:
            raise InputError(f"there is no lm_eval on PATH. {MEND}")
        return [program]
    if os.path.exists(python):  # "./python" has lost its "./" by now
        python = os.path.abspath(python)
    asked = [python, "-c", "import importlib.util as u; raise SystemExit(u.find_spec('lm_eval') is None)"]
    try:
        missing = subprocess.run(asked, capture_output=True).returncode != 0
    except OSError as error:
        raise InputError(f"--python: {python} cannot be started: {error.strerror}") from None
    if missing:
        raise InputError(f"--python: {python} has no lm_eval. {MEND}")
    return [python, "-m", "lm_eval"]


def measure_elsewhere(
    source: Path, settings: Settings, program: Sequence[str], console: Console
) -> dict[str, Any]:
    """lm-eval's results of the base and of the result of a run, and their differences; kept as lm-eval.json in it.

    ``source`` is a run, whose last model is then measured, or its best/. What was measured already by the same settings
    on the same weights is kept, so that an interrupted command goes on with what is missing. Adapters are measured
    merged, as `export` writes them: lm-eval gives a model with ``peft`` another vocabulary than the same without.

    A difference has an interval where lm-eval logged a number for each sample of both, of the same documents, and its
    figure is their mean: it is then a bootstrap of the paired differences (`metrics.bootstrap.difference`).

    Raises InputError for what is no run with a model, and where lm-eval fails; StorageError.
    """
    run, model = (source, source / "model") if (source / RUN).is_file() else (source.parent, source)
    with closing(RunDirectory.resume(run)) as opened:
        if adapter_at(str(model)) is None and not (model / "config.json").is_file():
            raise InputError(f"{model} is no model; wait for the end of the run, or name its best/")
        config = Config.load(run / CONFIG)
        given = replace(settings, dtype=settings.dtype or config.model.dtype)
        halves = {"base": _base(config, opened), "result": _result(model)}
        kept = _kept(run / LM_EVAL)
        said = [f"{name} {value}" for name, value in given.given().items()]
        found: dict[str, Any] = {"measured": f"{model.name}/: {', '.join(said)}", "halves": {}, "table": []}
        for name, (about, whole) in halves.items():
            asked = {"model": about, "settings": asdict(given), "tasks": _local_tasks(given)}
            half = kept.get(name, {})
            if half.get("asked") == asked:
                say(console, f"{name}: measured before with these settings")
            else:
                say(console, f"{name}: lm-eval measures {whole.name}")
                half = {"asked": asked} | _measured(run, program, whole, given)
            found["halves"][name] = half
            # Of the other half what was measured before stays until it is measured anew.
            _write(run / LM_EVAL, found | {"halves": kept | found["halves"]})
        found["table"] = _table(run, found["halves"]["base"], found["halves"]["result"])
        _write(run / LM_EVAL, found)
    return found


@dataclass(frozen=True)
class _Model:
    """A model, or an adapter, by its name; ``revision`` on the hub."""

    name: str
    revision: str | None = None

    def whole(self, place: Path, dtype: Kind) -> str:
        """lm-eval's ``model_args`` of it with whole weights; those of an adapter or GGUF file are put in ``place``."""
        revision = "" if self.revision is None else f",revision={self.revision}"
        if (adapter := adapter_at(self.name, self.revision)) is not None or is_gguf(self.name):
            # The adapter's own files: a name on the hub may lead to newer ones by now.
            found, revision = str(export(str(adapter or self.name), place, dtype=dtype).absolute()), ""
        else:
            found = os.path.realpath(self.name) if os.path.exists(self.name) else self.name
        if odd := sorted({*found} & {*",()[]{}\"'"}):
            raise InputError(
                f"{found!r}: lm-eval takes no {odd[0]} in a model's path; link it to another place"
            )
        return f"pretrained={found}{revision},dtype={dtype}"


def _base(config: Config, run: RunDirectory) -> tuple[dict[str, Any], _Model]:
    """What a run began with: its identity, and where it is. Raises InputError where that is gone."""
    name, lora = base_name(config), config.model.lora
    trained, now = model_of(run.identity()), of_configured(config)
    changed = [key for key in trained | now if trained.get(key) != now.get(key)]
    if changed:
        raise InputError(
            f"{name} is not what {run.path} was trained from ({changed[0]} is another), or a program had it in memory; "
            "put the old one back, or start where a relative path leads to it"
        )
    if lora is not None and lora.path is not None:
        return described(config), _Model(lora.path)
    return described(config), _Model(name, None if os.path.exists(name) else now["model"])


def _result(model: Path) -> tuple[dict[str, Any], _Model]:
    return identity_with_base(str(model.absolute())), _Model(str(model.absolute()))


def _measured(run: Path, program: Sequence[str], model: _Model, settings: Settings) -> dict[str, Any]:
    """What lm-eval finds of a model: its version, results, and the numbers of each sample that lie behind them."""
    with storing(run):
        made = tempfile.TemporaryDirectory(dir=run, prefix=".lm-eval-")
    with made as place:
        assert settings.dtype is not None, "it is the config's where none was given"
        told = model.whole(Path(place, "model"), settings.dtype)
        command = [*program, "--model", "hf", "--model_args", told, *settings.arguments()]
        written = Path(place, "found")
        # To the disk and standard error alone: standard output is this command's. A launcher's variables are not its.
        alone = {name: value for name, value in os.environ.items() if not OF_LAUNCHERS.fullmatch(name)}
        try:
            done = subprocess.run(
                [*command, "--output_path", str(written), "--log_samples"],
                stdout=subprocess.DEVNULL,
                env=alone,
            )
        except OSError as error:
            raise InputError(f"{program[0]} cannot be started: {error.strerror}. {MEND}") from None
        files = [*written.rglob("results_*.json")]
        if done.returncode or len(files) != 1:
            raise InputError(
                f"lm-eval ended with {done.returncode} and {len(files)} files of results; correct what it says above. "
                f"It was started as {' '.join(command)}"
            )
        try:
            return found_in(files[0])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"lm-eval's files cannot be read ({type(error).__name__}: {error}); they are known of version 0.4.13, "
                "install that one"
            ) from error


def _table(run: Path, base: Mapping[str, Any], result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each figure that lm-eval has of both models. Raises InputError where they do not compare."""
    if any(base[key] != result[key] for key in ("lm_eval_version", "versions", "n-samples")) or any(
        samples["docs"] != result["samples"][task]["docs"] for task, samples in base["samples"].items()
    ):
        raise InputError(
            "base and result were measured by other versions of lm-eval or of its tasks, or on other documents; remove "
            f"{run / LM_EVAL} and measure both anew"
        )
    rows = []
    for task, figures in base["results"].items():
        for key, value in figures.items():
            metric, comma, of_filter = key.partition(",")
            other = result["results"].get(task, {}).get(key)
            if not comma or metric.endswith("_stderr") or not (is_number(value) and is_number(other)):
                continue
            errors = [half["results"][task].get(f"{metric}_stderr,{of_filter}") for half in (base, result)]
            base_stderr, result_stderr = (error if is_number(error) else None for error in errors)
            rows.append(
                {
                    "task": task,
                    "metric": metric,
                    "filter": of_filter,
                    "samples": base["n-samples"].get(task, {}).get("effective"),
                    "higher_is_better": base["higher_is_better"].get(task, {}).get(metric),
                    "base": value,
                    "base_stderr": base_stderr,
                    "result": other,
                    "result_stderr": result_stderr,
                    "difference": other - value,
                    **_interval(base, result, task, key),
                }
            )
    return rows


def _interval(
    base: Mapping[str, Any], result: Mapping[str, Any], task: str, key: str
) -> dict[str, float | None]:
    """Ends of a paired difference; None where a figure is not the mean of numbers of its samples."""
    found = []
    for half in (base, result):
        values = half["samples"].get(task, {"values": {}})["values"].get(key)
        if values is None or not math.isclose(np.mean(values), half["results"][task][key], abs_tol=1e-9):
            return {"low": None, "high": None}
        found.append(np.array(values))
    paired = difference(found[1], found[0]).as_dict()
    return {"low": paired["low"], "high": paired["high"]}


def _local_tasks(settings: Settings) -> str | None:
    """A digest of the files that ``include_path`` brings, rows beside the tasks among them; None without."""
    if settings.include_path is None:
        return None
    place = Path(settings.include_path)
    files = sorted(file for file in place.rglob("*") if file.is_file() and file.suffix != ".pyc")
    return fingerprint(f"{file.relative_to(place)} {file_digest(file)}" for file in files)


def _kept(path: Path) -> dict[str, Any]:
    """The halves that were measured before. Raises StorageError for a damaged file."""
    if not path.is_file():
        return {}
    try:
        halves = json.loads(path.read_text(encoding="utf-8"))["halves"]
        return {name: dict(half) for name, half in halves.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise StorageError(f"{path} is damaged; remove it and measure both anew") from None


def _write(path: Path, found: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps(found) + "\n")
