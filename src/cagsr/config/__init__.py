"""The config of a run: a YAML file, dotted overrides that win over it, and one message for each mistake.

``Config.load`` reads and checks, ``Config.dump`` writes what was resolved, ``reference`` documents every key,
``check_paths`` looks at the disk before a model is loaded. Nothing here imports torch.
"""

import json
import os
import re
import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from errno import EDQUOT, ENOSPC
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, ValidationError, model_validator

from cagsr.config.comparison import Compare, Metrics
from cagsr.config.fields import Section
from cagsr.config.messages import expected, messages, section_of
from cagsr.config.sections import (
    Algorithm,
    Data,
    Model,
    Reward,
    Run,
    Sampling,
    Sft,
    Train,
    Vllm,
    Watch,
)
from cagsr.document import read_document, write_document
from cagsr.errors import InputError, StorageError
from cagsr.sources import FILES

__all__ = ["Config", "check_paths", "reference"]

# Width of the comments of `reference`, also in a terminal of 80 columns.
LINE = 79


class Conflict(NamedTuple):
    """Keys that cannot stand together, the telling one first, and why."""

    keys: tuple[str, ...]
    message: str


class Conflicts(ValueError):
    def __init__(self, conflicts: list[Conflict]):
        super().__init__("; ".join(conflict.message for conflict in conflicts))
        self.conflicts = conflicts


class Config(Section):
    """All that a run is told. Only where prompts come from (data.task or data.source) has no default."""

    model: Model = Field(default_factory=Model, description="What to train.")
    data: Data = Field(default_factory=Data, description="Prompts to train and evaluate on.")
    sampling: Sampling = Field(default_factory=Sampling, description="How responses are sampled.")
    reward: Reward = Field(default_factory=Reward, description="What a good response is.")
    algorithm: Algorithm = Field(default_factory=Algorithm, description="How rewards become updates.")
    train: Train = Field(default_factory=Train, description="The loop and the optimizer.")
    watch: Watch = Field(default_factory=Watch, description="Limits that tell a collapsing run.")
    run: Run = Field(default_factory=Run, description="Where a run is recorded.")
    sft: Sft = Field(default_factory=Sft, description="Supervised training on references (cagsr sft).")
    metrics: Metrics = Field(default_factory=Metrics, description="What responses are measured by.")
    compare: Compare = Field(default_factory=Compare, description="Systems side by side (cagsr compare).")

    @classmethod
    def load(cls, path: str | Path | None = None, overrides: Sequence[str] = ()) -> Self:
        """The config in ``path`` with ``overrides`` on top; raises InputError, a line for each mistake."""
        document = read_document(path, overrides)
        # A section whose keys are all commented out reads as null: it means the defaults.
        document.data = {key: {} if value is None else value for key, value in document.data.items()}
        try:
            return cls.model_validate(document.data)
        except ValidationError as error:
            raise InputError("\n".join(messages(error, document, cls))) from None

    def as_yaml(self) -> str:
        """The resolved config as YAML that loads back equal."""
        return write_document(self.model_dump(mode="json"))

    def dump(self, path: str | Path) -> None:
        """Write the resolved config as YAML that loads back equal."""
        Path(path).write_text(self.as_yaml(), encoding="utf-8")

    @model_validator(mode="after")
    def _refuse_impossible_combinations(self) -> Self:
        conflicts = list(_conflicts(self))
        if conflicts:
            raise Conflicts(conflicts)
        return self


def _conflicts(config: Config) -> Iterator[Conflict]:
    data, sampling, algorithm, train = config.data, config.sampling, config.algorithm, config.train
    if (data.task is None) == (data.source is None):
        yield Conflict(("data.source", "data.task"), "give either data.task or data.source, and not both")
    if data.source and config.model.name is None and config.sft.scratch is None:
        yield Conflict(("data.source", "model.name"), "data.source needs model.name")
    if data.task and (data.evaluation_source or data.evaluation_split):
        yield Conflict(
            ("data.evaluation_source", "data.evaluation_split"),
            "data.task brings its own evaluation prompts; remove evaluation_source and evaluation_split",
        )
    if data.holdout_column and (data.task or data.evaluation_source or data.evaluation_split):
        yield Conflict(
            ("data.holdout_column",),
            "data.holdout_column splits data.source; evaluation prompts are named already, remove one of the two",
        )
    if data.evaluation_split and not data.evaluation_source and (data.source or "").endswith(FILES):
        yield Conflict(
            ("data.evaluation_split",), f"{data.source} is a file without splits; set data.evaluation_source"
        )
    if (
        data.source
        and train.evaluate_every
        and not (data.evaluation_source or data.evaluation_split or data.holdout_column)
    ):
        yield Conflict(
            ("train.evaluate_every",),
            "train.evaluate_every needs data.evaluation_source, data.evaluation_split or data.holdout_column",
        )
    if sampling.min_new_tokens > sampling.max_new_tokens:
        yield Conflict(
            ("sampling.min_new_tokens", "sampling.max_new_tokens"),
            f"sampling.min_new_tokens ({sampling.min_new_tokens}) exceeds "
            f"sampling.max_new_tokens ({sampling.max_new_tokens})",
        )
    if sampling.candidates > 1 and (sampling.temperature == 0 or sampling.top_k == 1):
        yield Conflict(
            ("sampling.temperature", "sampling.top_k"),
            "a prompt's candidates would all be the same; set sampling.temperature above 0, top_k not to 1",
        )
    yield from _group_conflicts(config)
    yield from _engine_conflicts(config)
    if algorithm.kl_target is not None and algorithm.kl_coefficient == 0:
        yield Conflict(
            ("algorithm.kl_target", "algorithm.kl_coefficient"),
            "algorithm.kl_target adapts algorithm.kl_coefficient, which starts at 0; set it above 0",
        )
    if train.prompts_per_step % algorithm.minibatches:
        yield Conflict(
            ("algorithm.minibatches", "train.prompts_per_step"),
            f"algorithm.minibatches ({algorithm.minibatches}) must divide "
            f"train.prompts_per_step ({train.prompts_per_step})",
        )
    for section, part in (("train", train), ("sft", config.sft)):
        if part.warmup_steps > part.steps:
            yield Conflict(
                (f"{section}.warmup_steps", f"{section}.steps"),
                f"{section}.warmup_steps ({part.warmup_steps}) exceeds {section}.steps ({part.steps})",
            )
    salience = config.reward.salience
    if salience.kind == "column" and data.salience_column is None:
        yield Conflict(("reward.salience.kind",), "reward.salience.kind: column needs data.salience_column")
    if salience.kind == "span" and bool(salience.start or salience.end) == bool(salience.pattern):
        yield Conflict(
            ("reward.salience.kind",),
            "reward.salience.kind: span needs start or end, or a pattern, and not both",
        )
    if problem := _broken_pattern(salience.pattern):
        yield Conflict(("reward.salience.pattern",), f"reward.salience.pattern: {problem}")
    scratch = config.sft.scratch
    if scratch and scratch.hidden % scratch.heads:
        yield Conflict(
            ("sft.scratch.hidden", "sft.scratch.heads"),
            f"sft.scratch.hidden ({scratch.hidden}) must be a multiple of heads ({scratch.heads})",
        )


def _broken_pattern(pattern: str | None) -> str:
    """What is wrong with a regular expression, in words; empty where it is sound or there is none."""
    try:
        re.compile(pattern or "")
    except (re.error, OverflowError, RecursionError) as error:
        return f"{pattern!r} is no regular expression: {error}"
    return ""


def _group_conflicts(config: Config) -> Iterator[Conflict]:
    candidates, algorithm = config.sampling.candidates, config.algorithm
    if config.train.micro_batch < candidates:
        yield Conflict(
            ("train.micro_batch", "sampling.candidates"),
            f"train.micro_batch ({config.train.micro_batch}) must hold a prompt's {candidates} candidates",
        )
    if algorithm.name == "policy-gradient" and candidates * config.train.prompts_per_step < 2:
        yield Conflict(
            ("algorithm.name", "sampling.candidates", "train.prompts_per_step"),
            "policy-gradient compares the responses of a step, and there is one; "
            "set train.prompts_per_step or sampling.candidates to 2 or more",
        )
    if candidates > 1:
        return
    if algorithm.name in ("grpo", "rloo"):
        yield Conflict(
            ("sampling.candidates", "algorithm.name"),
            f"{algorithm.name} compares the candidates of a prompt; set sampling.candidates to 2 or more",
        )
    if any(term.standardise == "group" for term in config.reward.terms or ()):
        yield Conflict(
            ("sampling.candidates", "reward.terms"),
            "standardise: group compares the candidates of a prompt; set sampling.candidates to 2 or more",
        )


def _engine_conflicts(config: Config) -> Iterator[Conflict]:
    sampling = config.sampling
    if sampling.engine == "policy":
        if sampling.vllm != Vllm():
            yield Conflict(
                ("sampling.vllm", "sampling.engine"),
                "sampling.vllm is for sampling.engine: vllm; set that, or remove sampling.vllm",
            )
        return
    if config.model.architecture == "encoder-decoder":
        yield Conflict(
            ("sampling.engine", "model.architecture"),
            "sampling.engine: vllm writes with causal models only; set sampling.engine to policy",
        )
    if sampling.temperature == 0:
        yield Conflict(
            ("sampling.temperature", "sampling.engine"),
            "sampling.engine: vllm is corrected by the probability that a token was drawn with, and temperature 0 "
            "draws none; set sampling.temperature above 0",
        )
    if problem := _broken_url(sampling.vllm.base_url):
        yield Conflict(("sampling.vllm.base_url",), f"sampling.vllm.base_url: {problem}")


def _broken_url(url: str) -> str:
    """What is wrong with a server's URL, in words; empty where it can be asked. A secret in it is not repeated."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        return f"no URL: {error}"
    if "@" in parts.netloc or parts.query or parts.fragment:
        return "no user, password or query belongs in it: it is written into the records of every run"
    if parts.scheme not in ("http", "https") or not host:
        return f"{url!r} is no URL; it must be http:// or https:// and a host"
    return ""


def check_paths(config: Config) -> None:
    """Look at the disk before a model is loaded.

    Raises InputError for a data or preset file that is missing and for an output directory that is a file or
    cannot be written, and StorageError when the disk is full.
    """
    # Not Path.is_file: it raises where a name is too long for a file.
    for key, name in (("source", config.data.source), ("evaluation_source", config.data.evaluation_source)):
        if name and name.endswith(FILES) and not os.path.isfile(name):
            raise InputError(f"data.{key}: no such file {name!r}; correct the path")
    preset = config.reward.preset
    if preset.endswith((".yaml", ".yml")) and not os.path.isfile(preset):
        raise InputError(f"reward.preset: no such file {preset!r}; correct the path")
    directory = Path(config.run.directory)
    existing = _existing(directory)
    if not existing.is_dir():
        raise InputError(f"run.directory: {existing} is a file; choose another directory")
    try:
        with tempfile.TemporaryFile(dir=existing) as probe:
            probe.write(bytes(2**20))
    except OSError as error:
        if error.errno in (ENOSPC, EDQUOT):
            raise StorageError(f"run.directory: no space left for {directory}; free some and retry") from None
        raise InputError(f"run.directory: cannot write in {existing}: {error.strerror}") from None


def _existing(directory: Path) -> Path:
    """The directory, or the nearest around it that exists."""
    for path in (directory, *directory.absolute().parents):
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise InputError(
                f"run.directory: {directory}: {error.strerror}; choose another directory"
            ) from None
        return path
    raise AssertionError("the root exists")


def reference() -> str:
    """Every key with its meaning, its range and its default, as a YAML file that may be copied from."""
    return "\n".join(_reference_lines(Config, {}, "")) + "\n"


def _reference_lines(model: type[BaseModel], defaults: Mapping[str, Any], indent: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner = section_of(field)
        default = defaults.get(name, field.get_default(call_default_factory=True))
        yield _comment(str(field.description), indent)
        if isinstance(default, BaseModel) and inner:
            yield f"{indent}{name}:"
            yield from _reference_lines(inner, dict(default), indent + "  ")
            continue
        yield _comment(f"Expected: {expected(field)}.", indent)
        if inner and default is None:
            yield f"{indent}{name}: null"
            for line in "\n".join(_reference_lines(inner, {}, indent + "  ")).split("\n"):
                yield f"{indent}#{line.removeprefix(indent)}"
        elif field.is_required():
            yield f"{indent}{name}:"
        else:
            yield f"{indent}{name}: {json.dumps(default)}"


def _comment(text: str, indent: str) -> str:
    lead = f"{indent}# "
    return textwrap.fill(
        text,
        LINE,
        initial_indent=lead,
        subsequent_indent=lead,
        break_long_words=False,
        break_on_hyphens=False,
    )
