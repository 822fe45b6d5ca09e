"""Titles of metrics: the one name that tables, terminal and report give each of them."""

__all__ = ["TITLES", "column_title", "metric_title"]

TITLES = {
    "slot_error_rate": "slot errors",
    "coverage": "coverage",
    "perfect": "all slots",
    "clean": "clean",
    "hallucination": "invented",
    "repetition": "repetition",
    "length": "length",
    "reward": "reward",
    "evaluation/reward": "reward gain",
    "finished": "finished",
    "repeated_trigrams": "repeated trigrams",
    "relevance": "relevance",
    "rouge_l": "ROUGE-L",
    "exact_match": "exact match",
    "followup_nll": "follow-up nats",
    "distinct_2": "distinct 2-grams",
    "words": "words",
    "judge": "judge",
    "rating": "people",
    "rating_relevance": "people: relevance",
    "rating_coherence": "people: coherence",
    "kl": "KL",
    "reward_spread": "reward spread",
    "kl_coefficient": "KL price",
    "grad_norm": "gradient norm",
    "tokens_per_second": "tokens a second",
    "importance_max": "largest importance",
}
"""In the order of interest, which is that of a table's columns."""

# A column of an interval has nine characters. Columns are of evaluations, whose reward is `Reward.relative`.
COLUMNS = {"repetition": "repeated", "reward": "reward gain"}


def metric_title(name: str) -> str:
    """The title of a metric, of a signal ("signal/focus") or of an evaluation's metric ("evaluation/reward").

    An evaluation's reward has a title of its own, because it has a scale of its own: see docs/method.md.
    """
    short = name.rpartition("/")[2]
    return TITLES.get(name) or TITLES.get(short, short.replace("_", " "))


def column_title(name: str) -> str:
    """The title at the head of an evaluation's column: as `metric_title`, or shorter."""
    return COLUMNS.get(name, metric_title(name))
