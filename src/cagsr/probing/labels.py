"""What a probe judges rewards by: whatever is at hand of a checker, references and people's pairs."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from rich.console import Console

from cagsr.config import Config
from cagsr.data import splits
from cagsr.data.preferences import Pair
from cagsr.data.row_messages import say_cut, say_rows
from cagsr.evaluation.evaluator import Answers
from cagsr.evaluation.scoreboard import prompt_key
from cagsr.metrics.rouge import rouge_l
from cagsr.metrics.slots import slot_metrics
from cagsr.models.policy import Policy
from cagsr.probing.samples import Probed, pair_accuracy
from cagsr.rewards.reward_set import Panel
from cagsr.rewards.salience import Salience
from cagsr.tasks.task import Checker
from cagsr.types import Prompt

__all__ = ["find_agreement", "find_truths"]

MOST_PAIRS = 200


def find_truths(
    config: Config, split: str, prompts: Sequence[Prompt], sampled: Answers, checker: Checker | None
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Truth -> [P K], higher is better; and why what could have told more is not there."""
    truths: dict[str, np.ndarray] = {}
    missing: dict[str, str] = {}
    shape = sampled.tokens.shape
    rows = [
        (prompt, text) for prompt, texts in zip(prompts, sampled.responses, strict=True) for text in texts
    ]
    if checker is None:
        missing["checker"] = "none (data.checker)"
    else:
        quality = [checker.quality(prompt.row, text) for prompt, text in rows]
        metrics = slot_metrics(
            [checker.check(prompt.row, text) for prompt, text in rows], sampled.tokens.ravel().tolist()
        )
        truths = {
            "quality": np.array(quality).reshape(shape),
            "said": metrics["coverage"].reshape(shape),
            "invented": -metrics["hallucination"].reshape(shape),
            "repeated": -metrics["repetition"].reshape(shape),
        }
    references = splits.build_references(config, split)
    unanswered = sum(prompt_key(prompt) not in references for prompt in prompts)
    if unanswered:
        missing["references"] = f"{unanswered} of {len(prompts)} prompts have none"
    elif find_spec("rouge_score") is None:
        missing["references"] = "rouge-score is not installed: pip install rouge-score"
    else:
        measure = rouge_l()
        overlap = [measure(text, references[prompt_key(prompt)]) for prompt, text in rows]
        truths["rouge_l"] = np.array(overlap).reshape(shape)
    return truths, missing


def find_agreement(
    config: Config,
    policy: Policy,
    panel: Panel,
    salience: Salience,
    probed: Probed,
    checker: Checker | None,
    console: Console,
) -> tuple[dict[str, np.ndarray], str | None]:
    """Reward -> [pairs] as of `pair_accuracy`, empty where no pairs are given; why the oracle is not among them."""
    pairs, report = splits.build_pairs(config, policy)
    if not pairs:
        return {}, None
    say_rows(console, "pairs", report)
    pairs = pairs[:MOST_PAIRS]
    limit, size = config.sampling.max_new_tokens, max(1, config.train.micro_batch // 2)
    texts = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
    say_cut(console, policy, "responses of pairs", texts, limit, "sampling.max_new_tokens")
    unread = None if checker is None else _unread(checker, pairs)
    asked = panel if unread is None else panel.without("oracle")
    how: dict[str, Any] = {"asked": asked, "limit": limit, "pairs_per_pass": size}
    return pair_accuracy(policy, pairs, panel, salience, probed.sampled, **how), unread


def _unread(checker: Checker, pairs: Sequence[Pair]) -> str | None:
    """Why the checker cannot judge these pairs; None where it can. Pairs come from a file without its columns."""
    for pair in pairs:
        try:
            checker.quality(pair.prompt.row, pair.chosen)
        except Exception as error:  # a checker of the user's own may raise anything
            return f"the checker cannot read their rows ({type(error).__name__}: {error})"
    return None
