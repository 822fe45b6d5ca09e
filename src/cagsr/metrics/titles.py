"""Titles of metrics, the one name that tables, terminal and report give each of them, and which way is better."""

__all__ = ["DIRECTIONS", "TITLES", "column_title", "metric_title"]

# Title, and True: higher is better; False: lower is; None: neither. Of signals the reward says which way they count.
KNOWN: dict[str, tuple[str, bool | None]] = {
    "slot_error_rate": ("slot errors", False),
    "coverage": ("coverage", True),
    "perfect": ("all slots", True),
    "clean": ("clean", True),
    "hallucination": ("invented", False),
    "wrong_values": ("wrong values", False),
    "foreign_names": ("foreign names, numbers", False),
    "repetition": ("repetition", False),
    "length": ("length", None),
    "reward": ("reward", True),
    "evaluation/reward": ("reward gain", None),
    "finished": ("finished", True),
    "repeated_trigrams": ("repeated trigrams", False),
    "relevance": ("relevance", True),
    "rouge_l": ("ROUGE-L", True),
    "ifeval_strict": ("IFEval strict", True),
    "ifeval_loose": ("IFEval loose", True),
    "ifeval_instructions": ("IFEval by instruction", True),
    "exact_match": ("exact match", True),
    "followup_nll": ("follow-up nats", False),
    "distinct_2": ("distinct 2-grams", True),
    "words": ("words", None),
    "judge": ("judge", True),
    "rating": ("people", True),
    "rating_relevance": ("people: relevance", True),
    "rating_coherence": ("people: coherence", True),
    "kl": ("KL", None),
    "reward_spread": ("reward spread", None),
    "kl_coefficient": ("KL price", None),
    "grad_norm": ("gradient norm", None),
    "tokens_per_second": ("tokens a second", None),
    "memory": ("peak memory", None),
    "importance_max": ("largest importance", None),
}
TITLES = {name: title for name, (title, _) in KNOWN.items()}
"""In the order of interest, which is that of a table's columns."""
DIRECTIONS = {name: higher for name, (_, higher) in KNOWN.items()}

# A column of an interval has nine characters. Columns are of evaluations, whose reward is `Reward.relative`.
COLUMNS = {
    "repetition": "repeated",
    "reward": "reward gain",
    "foreign_names": "foreign names",
    "ifeval_strict": "IFEval",
    "ifeval_instructions": "by instruction",
}


def metric_title(name: str) -> str:
    """The title of a metric, of a signal ("signal/focus") or of an evaluation's metric ("evaluation/reward").

    An evaluation's reward has a title of its own, because it has a scale of its own: see docs/method.md.
    """
    short = name.rpartition("/")[2]
    return TITLES.get(name) or TITLES.get(short, short.replace("_", " "))


def column_title(name: str) -> str:
    """The title at the head of an evaluation's column: as `metric_title`, or shorter."""
    return COLUMNS.get(name, metric_title(name))
