"""Which way every metric is better: what tables and tests of differences go by."""

__all__ = ["HIGHER_IS_BETTER"]

HIGHER_IS_BETTER: dict[str, bool | None] = {
    "slot_error_rate": False,
    "coverage": True,
    "perfect": True,
    "clean": True,
    "hallucination": False,
    "repetition": False,
    "reward": True,
    "finished": True,
    "repeated_trigrams": False,
    "relevance": True,
    "rouge_l": True,
    "exact_match": True,
    "followup_nll": False,
    "distinct_2": True,
    "judge": True,
    "rating": True,
    "rating_relevance": True,
    "rating_coherence": True,
    "length": None,
    "words": None,
    "kl": None,
}
"""True: higher is better; False: lower is; None: more is neither. Signals are not here: that is the reward's to say."""
