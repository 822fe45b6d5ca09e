"""The `Scoreboard` of a config: the metrics that it asks for, and the models that they need."""

from collections.abc import Sequence
from typing import Any

from transformers.utils import resolve_revision

from cagsr.config import Config
from cagsr.data.readers import Row
from cagsr.data.splits import build_references
from cagsr.errors import InputError
from cagsr.evaluation.perplexity import FollowUp
from cagsr.evaluation.scoreboard import Scoreboard
from cagsr.io.provenance import identity
from cagsr.metrics.endpoint import Endpoint, check_endpoint
from cagsr.metrics.ifeval import ifeval
from cagsr.metrics.judge import Judge
from cagsr.metrics.local_model import LocalModel
from cagsr.metrics.ratings import read_ratings
from cagsr.metrics.relevance import Relevance, relevance_model
from cagsr.metrics.rouge import rouge_l
from cagsr.models.load import load_model, load_tokenizer, make_policy
from cagsr.models.policy import Policy
from cagsr.tasks.bases import base_name
from cagsr.tasks.task import Checker

__all__ = ["build_scoreboard", "check_metrics", "check_rows"]


def check_metrics(config: Config) -> None:
    """Raise InputError for a metric whose package or file is missing, and for a key in the judge's URL.

    Before any model is loaded and anything is written.
    """
    given = config.metrics
    if given.judge is not None and given.judge.endpoint is not None:
        check_endpoint(given.judge.endpoint)
    if given.relevance_model is not None:
        relevance_model(given.relevance_model)
    if given.rouge:
        rouge_l()
    if given.ratings is not None:
        read_ratings(given.ratings)
    if given.ifeval:
        ifeval()


def check_rows(config: Config, rows: Sequence[Row]) -> None:
    """Raise InputError for a row that a metric cannot measure, before any model is loaded."""
    for measure in [ifeval()] if config.metrics.ifeval else []:
        for row in rows:
            try:
                if not row.problem:
                    measure(row.values, "Tried. Before.")
            except ValueError as error:
                raise InputError(f"metrics.ifeval: {row.place}: {error}; leave it out") from error


def build_scoreboard(
    config: Config, base: Policy, checker: Checker | None, split: str = "heldout"
) -> Scoreboard:
    """The scoreboard of all metrics that ``metrics`` asks for.

    ``base`` is frozen: it is the model of the follow-up perplexity, if that is ``base``; other models that are loaded
    go to its device.
    """
    check_metrics(config)
    given, device = config.metrics, base.device
    relevance = judge = followup = None
    which: dict[str, Any] = {}
    if given.relevance_model is not None:
        relevance = Relevance(given.relevance_model, given.relevance_revision, device)
    if given.perplexity_model is not None:
        name, revision = given.perplexity_model, given.perplexity_revision
        if name == "base":
            frozen, name, revision = base, base_name(config), config.model.revision
        else:
            revision = resolve_revision(name, revision)  # one commit for all files, and for the record
            frozen = _frozen(config, name, revision).to(device)
        followup, which = FollowUp(frozen, config.train.micro_batch), identity(name, revision)
    if given.judge is not None:
        asked = given.judge
        if asked.endpoint is not None:
            judge = Judge(Endpoint(asked.endpoint, asked.model, asked.timeout))
        else:
            judge = Judge(LocalModel(asked.model, asked.revision, device))
    return Scoreboard(
        checker=checker,
        references=build_references(config, split),
        relevance=relevance,
        rouge=rouge_l() if given.rouge else None,
        ifeval=ifeval() if given.ifeval else None,
        followup=followup,
        followup_column=given.followup_column,
        followup_model=which,
        judge=judge,
        judged=0 if given.judge is None else given.judge.prompts,
        ratings=None if given.ratings is None else read_ratings(given.ratings),
    )


def _frozen(config: Config, name: str, revision: str | None) -> Policy:
    """Policy of another model, for evaluation only: no critic, no adapter, no code of its own."""
    try:
        loaded, _ = load_model(name, revision=revision, dtype=config.model.dtype)
        policy = make_policy(loaded, load_tokenizer(name, revision=revision))
    except InputError as error:
        problem = str(error).replace("model.name", "metrics.perplexity_model")
        raise InputError(problem) from error
    return policy.requires_grad_(False)
