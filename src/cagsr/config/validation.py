"""Checks across config keys: combinations of valid values that cannot work, found before anything is loaded."""

import re
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple
from urllib.parse import urlsplit

from cagsr.config.schema import FILES, NOT_OF_TEMPLATES, Sections, Vllm

__all__ = ["Conflict", "Conflicts", "conflicts"]


class Conflict(NamedTuple):
    """Config keys that cannot be combined, the decisive one first, and the reason."""

    keys: tuple[str, ...]
    message: str


class Conflicts(ValueError):
    """All conflicts of a config, as one error for pydantic."""

    def __init__(self, conflicts: list[Conflict]):
        super().__init__("; ".join(conflict.message for conflict in conflicts))
        self.conflicts = conflicts


def conflicts(config: Sections) -> Iterator[Conflict]:
    """All combinations of keys that cannot work, so that one message names them all."""
    return chain.from_iterable(
        find(config) for find in (_data, _sampling, _groups, _adapter, _engine, _training, _salience)
    )


def _data(config: Sections) -> Iterator[Conflict]:
    data = config.data
    evaluated = data.evaluation_source or data.evaluation_split
    if (data.task is None) == (data.source is None):
        yield Conflict(("data.source", "data.task"), "give either data.task or data.source, and not both")
    for name in sorted(NOT_OF_TEMPLATES & set(data.chat_template_kwargs)):
        yield Conflict(
            ("data.chat_template_kwargs",),
            f"data.chat_template_kwargs: {name} is no variable of a chat template; leave it out",
        )
    if data.source and config.model.name is None and config.sft.scratch is None:
        yield Conflict(("data.source", "model.name"), "data.source needs model.name")
    if data.task and evaluated:
        yield Conflict(
            ("data.evaluation_source", "data.evaluation_split"),
            "data.task brings its own evaluation prompts; remove evaluation_source and evaluation_split",
        )
    if data.holdout_column and (data.task or evaluated):
        yield Conflict(
            ("data.holdout_column",),
            "data.holdout_column splits data.source; evaluation prompts are named already, remove one of the two",
        )
    files = [part.path for part in data.parts() if part.path.lower().endswith(FILES)]
    if data.evaluation_split and not data.evaluation_source and files:
        yield Conflict(
            ("data.evaluation_split",), f"{files[0]} is a file without splits; set data.evaluation_source"
        )
    weights = [part.weight for part in data.parts()]
    if any(weights) and None in weights:
        yield Conflict(("data.source",), "data.source: give a weight to each data set, or to none")
    if data.evaluation_source and any(part.weight for part in data.parts(evaluation=True)):
        yield Conflict(
            ("data.evaluation_source",),
            "data.evaluation_source: weights say how often a prompt is trained on; leave them out",
        )
    if data.streaming and len(files) == len(weights):
        yield Conflict(
            ("data.streaming",),
            "data.streaming is for hub data sets; a task and files are read whole, leave it out",
        )
    if data.source and config.train.evaluate_every and not (evaluated or data.holdout_column):
        yield Conflict(
            ("train.evaluate_every",),
            "train.evaluate_every needs data.evaluation_source, data.evaluation_split or data.holdout_column",
        )


def _sampling(config: Sections) -> Iterator[Conflict]:
    sampling = config.sampling
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


def _groups(config: Sections) -> Iterator[Conflict]:
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
    if config.train.replacements:
        yield Conflict(
            ("train.replacements", "sampling.candidates"),
            "train.replacements looks for prompts whose candidates differ in reward; set sampling.candidates to 2 "
            "or more",
        )
    if algorithm.name in ("grpo", "dr-grpo", "rloo"):
        yield Conflict(
            ("sampling.candidates", "algorithm.name"),
            f"{algorithm.name} compares the candidates of a prompt; set sampling.candidates to 2 or more",
        )
    if any(term.standardise == "group" for term in config.reward.terms or ()):
        yield Conflict(
            ("sampling.candidates", "reward.terms"),
            "standardise: group compares the candidates of a prompt; set sampling.candidates to 2 or more",
        )


def _adapter(config: Sections) -> Iterator[Conflict]:
    for name in config.model.lora.beside_path if config.model.lora else ():
        key = f"model.lora.{name}"
        yield Conflict(
            (key, "model.lora.path", "model.lora"),
            f"{key}: the adapter that model.lora.path leads to has settings of its own; leave one of them out",
        )


def _engine(config: Sections) -> Iterator[Conflict]:
    sampling, model = config.sampling, config.model
    narrow, vllm = sampling.dtype is not None, sampling.engine == "vllm"
    dora = bool(model.lora and model.lora.use_dora)
    for key, other, given, why in (
        (
            "model.lora.use_dora",
            "sampling.dtype",
            dora and narrow,
            "merges the adapter for every rollout, and DoRA cannot be",
        ),
        ("model.lora.use_dora", "sampling.engine", dora and vllm, "vllm takes plain LoRA adapters only"),
        (
            "model.load_in_4bit",
            "sampling.dtype",
            model.load_in_4bit and narrow,
            "merges the adapter for every rollout, and four bits cannot hold it",
        ),
        (
            "model.load_in_4bit",
            "sampling.engine",
            model.load_in_4bit and vllm,
            "vllm writes with weights of its own, which are not these four bits",
        ),
    ):
        if given:
            yield Conflict((key, other), f"{key}: {other} {why}; leave one of them out")
    if sampling.engine == "policy":
        if sampling.vllm != Vllm():
            yield Conflict(
                ("sampling.vllm", "sampling.engine"),
                "sampling.vllm is for sampling.engine: vllm; set that, or remove sampling.vllm",
            )
        return
    if sampling.dtype is not None:
        yield Conflict(
            ("sampling.dtype", "sampling.engine"),
            "sampling.dtype is for sampling.engine: policy; a vLLM server is started with its own, remove one of them",
        )
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


def _training(config: Sections) -> Iterator[Conflict]:
    algorithm, train = config.algorithm, config.train
    if algorithm.kl_target is not None and algorithm.kl_coefficient == 0:
        yield Conflict(
            ("algorithm.kl_target", "algorithm.kl_coefficient"),
            "algorithm.kl_target adapts algorithm.kl_coefficient, which starts at 0; set it above 0",
        )
    if algorithm.kl_in_reward and algorithm.kl_estimate != "k2":
        yield Conflict(
            ("algorithm.kl_estimate", "algorithm.kl_placement"),
            f"algorithm.kl_estimate: {algorithm.kl_estimate} is for a KL in the loss, and this one is in the reward, "
            "where it is k1; set algorithm.kl_placement to loss, or leave kl_estimate out",
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
                f"{section}.warmup_steps ({part.warmup_steps}) exceeds {section}.steps ({part.steps}); set it too",
            )
    scratch = config.sft.scratch
    if scratch and scratch.hidden % scratch.heads:
        yield Conflict(
            ("sft.scratch.hidden", "sft.scratch.heads"),
            f"sft.scratch.hidden ({scratch.hidden}) must be a multiple of heads ({scratch.heads})",
        )


def _salience(config: Sections) -> Iterator[Conflict]:
    salience = config.reward.salience
    if salience.kind == "column" and config.data.salience_column is None:
        yield Conflict(("reward.salience.kind",), "reward.salience.kind: column needs data.salience_column")
    if salience.kind == "column" and salience.roles != ["last-user"]:
        yield Conflict(
            ("reward.salience.roles", "reward.salience.kind"),
            "reward.salience.roles: not with kind: column, which names what counts wherever it stands; leave it out",
        )
    if salience.kind == "span" and bool(salience.start or salience.end) == bool(salience.pattern):
        yield Conflict(
            ("reward.salience.kind",),
            "reward.salience.kind: span needs start or end, or a pattern, and not both",
        )
    if problem := _broken_pattern(salience.pattern):
        yield Conflict(("reward.salience.pattern",), f"reward.salience.pattern: {problem}")


def _broken_url(url: str) -> str:
    """The reason why a server's URL cannot be used; empty where it can. A secret in it is not repeated."""
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


def _broken_pattern(pattern: str | None) -> str:
    """The error in a regular expression; empty where it is valid or there is none."""
    try:
        re.compile(pattern or "")
    except (re.error, OverflowError, RecursionError) as error:
        return f"{pattern!r} is no regular expression: {error}"
    return ""
