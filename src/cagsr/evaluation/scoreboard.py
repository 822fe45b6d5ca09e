"""Scoreboard: every metric of a system's responses, measured alike for all systems."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np

from cagsr.errors import EndpointError, InputError
from cagsr.evaluation.evaluator import Answers, values_of
from cagsr.evaluation.perplexity import FollowUp
from cagsr.metrics import RESPONSE_METRICS
from cagsr.metrics.bootstrap import interval
from cagsr.metrics.judge import Judge, Preferences
from cagsr.metrics.ratings import ASPECTS, Ratings
from cagsr.metrics.relevance import Relevance
from cagsr.metrics.text import exact_match
from cagsr.tasks.task import Checker
from cagsr.types import Prompt

__all__ = ["Opinions", "Scoreboard", "on_common_prompts", "preference_summary", "prompt_key", "user_text"]

RATINGS = {"overall": "rating", "relevance": "rating_relevance", "coherence": "rating_coherence"}


def prompt_key(prompt: Prompt) -> str:
    """Key by which a prompt's references are found: the prompt of its row, before templates and truncation."""
    return str(prompt.row.get("prompt", prompt.text))


def user_text(prompt: Prompt) -> str:
    """The user's own text of a prompt, without its template."""
    return "\n".join(prompt.text[turn.start : turn.stop] for turn in prompt.turns if turn.role == "user")


@dataclass(frozen=True)
class Opinions:
    """Ratings by a judge and by people: metric -> [P] from 1 to 5, NaN where a prompt has none; and counts.

    counts: judge_asked, judge_failures (answers that could not be read), human_ratings, and
    human_ratings_of_other_responses (to this system and prompt, but not to the response that is measured).
    """

    values: dict[str, np.ndarray]
    counts: dict[str, int]


@dataclass
class Scoreboard:
    """The metrics of a comparison; a field that is None is not measured. Each metric is defined in its own module.

    references       prompt_key -> texts; ROUGE-L and exact match need one for every prompt
    followup_column  column of the user's next turn; None: the prompt's own reference stands for it
    followup_model   what ``describe`` says of the model in ``followup``
    judged           so many prompts are judged, the first ones
    not_measured     metric -> why, filled by `values`, and by a judge that failed
    """

    checker: Checker | None = None
    references: Mapping[str, list[str]] = field(default_factory=dict)
    relevance: Relevance | None = None
    rouge: Callable[[str, Sequence[str]], float] | None = None
    ifeval: Callable[[Mapping[str, Any], str], dict[str, float]] | None = None
    followup: FollowUp | None = None
    followup_column: str | None = None
    followup_model: Mapping[str, Any] = field(default_factory=dict)
    judge: Judge | None = None
    judged: int = 0
    ratings: Ratings | None = None
    not_measured: dict[str, str] = field(default_factory=dict)
    judge_failed: bool = False

    def values(self, prompts: Sequence[Prompt], answers: Answers) -> dict[str, np.ndarray]:
        """Metrics of one system: name -> [P], each the mean over a prompt's K responses; all finite.

        Slot metrics (with a checker), length, finished, repeated_trigrams as `evaluator.values_of`; those of
        `metrics.RESPONSE_METRICS` always; exact_match and rouge_l where every prompt has a reference; relevance and
        followup_nll and those of `metrics.ifeval` where they are asked for. `metrics.higher_is_better` says which way
        is better.

        Raises InputError where a prompt lacks the column of the next turn.
        """
        k = answers.tokens.shape[1]
        rows = [
            (prompt, text) for prompt, texts in zip(prompts, answers.responses, strict=True) for text in texts
        ]
        measured: dict[str, Any] = {
            **{
                name: [metric.function({"prompt": prompt.text, **prompt.row}, text) for prompt, text in rows]
                for name, metric in RESPONSE_METRICS.items()
            },
            **self._to_references(rows),
        }
        if self.ifeval is not None:
            followed = [self.ifeval(prompt.row, text) for prompt, text in rows]
            measured |= {name: [each[name] for each in followed] for name in followed[0]}
        if self.relevance is not None:
            measured["relevance"] = self.relevance(
                [user_text(p) for p, _ in rows], [text for _, text in rows]
            )
        if self.followup is not None and (targets := self._targets(prompts)) is not None:
            following = [target for target in targets for _ in range(k)]
            asked, texts = [prompt for prompt, _ in rows], [text for _, text in rows]
            measured["followup_nll"] = self.followup.nll(asked, texts, following)
        return values_of(answers, prompts, self.checker) | {
            name: np.asarray(value, dtype=float).reshape(-1, k).mean(1) for name, value in measured.items()
        }

    def opinions(self, system: str, prompts: Sequence[Prompt], responses: Sequence[str]) -> Opinions:
        """Ratings by the judge (``judge``) and by people (``rating``, ``rating_relevance``, ``rating_coherence``).

        One response a prompt. A metric that nobody gave an opinion on is left out.
        """
        judged, people = self.judged_by_model(prompts, responses), self.people(system, prompts, responses)
        return Opinions(judged.values | people.values, judged.counts | people.counts)

    def judged_by_model(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Opinions:
        """Ratings by the judge alone, as `opinions`.

        A judge that fails is not asked again; ``not_measured`` has its reason, and what it was asked here is nothing.
        """
        if self.judge is None or self.judge_failed:
            return Opinions({}, {})
        asked = min(self.judged, len(prompts))
        try:
            rated = self.judge.rate([user_text(prompt) for prompt in prompts[:asked]], responses[:asked])
        except (EndpointError, InputError) as error:
            self._without_judge(error)
            return Opinions({}, {})
        counts = {"judge_asked": asked, "judge_failures": rated.failures}
        return Opinions(_found({"judge": _padded(rated.ratings, len(prompts))}), counts)

    def people(self, system: str, prompts: Sequence[Prompt], responses: Sequence[str]) -> Opinions:
        """Ratings by people alone, as `opinions`."""
        if self.ratings is None:
            return Opinions({}, {})
        # A conversation's prompt is a list in its row; people saw, and rated, its text.
        given = [prompt.row.get("prompt", prompt.text) for prompt in prompts]
        seen = [
            each if isinstance(each, str) else prompt.text
            for each, prompt in zip(given, prompts, strict=True)
        ]
        rows = [(system, *row) for row in zip(seen, responses, strict=True)]
        found = {aspect: [self.ratings.mean(*row, aspect) for row in rows] for aspect in ASPECTS}
        counts = {
            "human_ratings": sum(count for _, count in found["overall"]),
            "human_ratings_of_other_responses": sum(self.ratings.of_other_responses(*row) for row in rows),
        }
        values = {RATINGS[aspect]: np.array([mean for mean, _ in given]) for aspect, given in found.items()}
        return Opinions(_found(values), counts)

    def preferences(
        self, prompts: Sequence[Prompt], responses: Sequence[str], others: Sequence[str]
    ) -> Preferences | None:
        """Pairwise preferences of the judge, values [P]: 1 for ``responses``, 0 for ``others``; NaN where not asked.

        None where the judge fails, or failed before.
        """
        assert self.judge is not None, "preferences need a judge"
        if self.judge_failed:
            return None
        asked = min(self.judged, len(prompts))
        users = [user_text(prompt) for prompt in prompts[:asked]]
        try:
            found = self.judge.prefer(users, responses[:asked], others[:asked])
        except (EndpointError, InputError) as error:
            self._without_judge(error)
            return None
        return Preferences(_padded(found.values, len(prompts)), found.disagreements, found.failures)

    def _without_judge(self, error: Exception) -> None:
        self.judge_failed, self.not_measured["judge"] = True, str(error)

    def describe(self) -> dict[str, Any]:
        """Provenance of the metrics: models with revision or hash, package versions, what was not measured and why."""
        said: dict[str, Any] = {}
        if self.relevance is not None:
            said["relevance"] = self.relevance.describe()
        if self.rouge is not None:
            said["rouge_l"] = {"package": "rouge-score", "version": version("rouge-score"), "stemmer": True}
        if self.ifeval is not None:
            said["ifeval"] = {"package": "if-verifiable", "version": version("if-verifiable")}
        if self.followup is not None:
            said["followup_nll"] = {**self.followup_model, "target": self.followup_column or "reference"}
        if self.judge is not None:
            said["judge"] = {**self.judge.describe(), "prompts": self.judged}
        if self.references:
            texts = sum(map(len, self.references.values()))
            said["references"] = {"prompts": len(self.references), "texts": texts}
        if self.not_measured:
            said["not_measured"] = dict(self.not_measured)
        return said

    def _to_references(self, rows: Sequence[tuple[Prompt, str]]) -> dict[str, list[float]]:
        measures: dict[str, Callable[[str, Sequence[str]], float]] = {"exact_match": exact_match}
        if self.rouge is not None:
            measures["rouge_l"] = self.rouge
        found = [self.references.get(prompt_key(prompt), []) for prompt, _ in rows]
        if missing := sum(not texts for texts in found):
            if missing < len(found) or self.rouge is not None:
                reason = f"{missing} of {len(found)} responses have no reference"
                self.not_measured |= dict.fromkeys(measures, reason)
            return {}
        return {
            name: [measure(text, texts) for (_, text), texts in zip(rows, found, strict=True)]
            for name, measure in measures.items()
        }

    def _targets(self, prompts: Sequence[Prompt]) -> list[str] | None:
        column = self.followup_column or "reference"
        found = [prompt.row.get(column) for prompt in prompts]
        missing = [
            p for p, text in zip(prompts, found, strict=True) if not (isinstance(text, str) and text.strip())
        ]
        if not missing:
            return [str(text) for text in found]
        reason = f"{len(missing)} of {len(prompts)} prompts have no text as {column!r}"
        if self.followup_column is not None:
            raise InputError(
                f"metrics.followup_column: {reason} (first: row {missing[0].index + 1}, with the columns "
                f"{', '.join(map(repr, missing[0].row))}). Name another column, or set metrics.perplexity_model: null"
            )
        self.not_measured["followup_nll"] = reason
        return None


def on_common_prompts(systems: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, dict[str, np.ndarray]]:
    """Opinions [P] or [seeds, P] cut to the prompts where a metric is finite for every system (and seed).

    A metric that a system lacks, or that no prompt has for all of them, is left out: nothing could be compared.
    """
    first, *others = systems.values()
    kept: dict[str, dict[str, np.ndarray]] = {name: {} for name in systems}
    for metric in first:
        if not all(metric in other for other in others):
            continue
        finite = [np.isfinite(np.atleast_2d(values[metric])).all(0) for values in systems.values()]
        common = np.logical_and.reduce(finite)
        for name, values in systems.items():
            if common.any():
                kept[name][metric] = values[metric][..., common]
    return kept


def preference_summary(found: Preferences, level: float = 0.95) -> dict[str, Any]:
    """Summary of preferences: mean in [0, 1] with its interval (.5: none), wins, ties, losses, disagreements, failures.

    ``found.values`` are [P], or [seeds P]; mean and interval are of the prompts that were judged with every seed.
    """
    table = np.atleast_2d(found.values)
    values = table[:, np.isfinite(table).all(0)]
    counts = {
        "wins": int((table == 1).sum()),
        "ties": int((table == 0.5).sum()),
        "losses": int((table == 0).sum()),
        "disagreements": found.disagreements,
        "failures": found.failures,
    }
    return counts | (interval(values, level=level).as_dict() if values.size else {})


def _found(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value for name, value in values.items() if np.isfinite(value).any()}


def _padded(values: np.ndarray, length: int) -> np.ndarray:
    return np.concatenate([values, np.full(length - len(values), np.nan)])
