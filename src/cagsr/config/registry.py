"""Registries of estimators, policy losses, signals and tasks: from a name in a config to a dotted path.

A path is imported only when it is used, so that a config is checked without torch. A new one is a file and a line here.
Two more registries lie beside what they list: metrics of responses in `cagsr.metrics` (RESPONSE_METRICS), systems of a
comparison in `cagsr.experiments.systems` (SYSTEMS).
"""

import importlib
from typing import Any

__all__ = ["ESTIMATORS", "POLICY_LOSSES", "SIGNALS", "TASKS", "load"]

ESTIMATORS = {
    "grpo": "cagsr.training.estimators.group.group_relative",
    "dr-grpo": "cagsr.training.estimators.centred.group_centred",
    "ppo": "cagsr.training.estimators.gae.gae",
    "rloo": "cagsr.training.estimators.leave_one_out.leave_one_out",
    "policy-gradient": "cagsr.training.estimators.batch_baseline.batch_baseline",
}
"""algorithm.name -> how rewards become advantages."""

POLICY_LOSSES = {
    "clipped": "cagsr.training.policy_losses.clipped.clipped",
    "cispo": "cagsr.training.policy_losses.cispo.cispo",
    "gspo": "cagsr.training.policy_losses.gspo.gspo",
}
"""algorithm.loss.name -> the loss of each token."""

SIGNALS = {
    name: f"cagsr.rewards.signals.{name}.{name}"
    for name in (
        "agreement",
        "attended",
        "certainty",
        "contradiction",
        "coverage",
        "focus",
        "grounding",
        "knockout",
        "length",
        "lexical_overlap",
        "lookback",
        "mass",
        "precision",
        "random_reward",
        "reconstruction",
        "reference_logprob",
        "reference_overlap",
        "repeated_words",
        "repetition",
        "retold",
        "reward_model",
        "shift",
        "surprise",
        "swapped",
        "token_copy",
        "unexplained",
        "unfinished",
    )
}
"""reward.terms[].signal -> one number a response."""

TASKS = {
    "slots": "cagsr.tasks.slots.SLOTS",
    "slots-paraphrase": "cagsr.tasks.slots_paraphrase.SLOTS_PARAPHRASE",
    "keywords": "cagsr.tasks.keywords.KEYWORDS",
    "qa": "cagsr.tasks.qa.QA",
    "restaurants": "cagsr.tasks.restaurants.RESTAURANTS",
    "requests": "cagsr.tasks.requests.REQUESTS",
}
"""data.task -> a generated task with its checker."""


def load(path: str) -> Any:
    """Import the object at a dotted path of this package."""
    module, _, attribute = path.rpartition(".")
    return getattr(importlib.import_module(module), attribute)
