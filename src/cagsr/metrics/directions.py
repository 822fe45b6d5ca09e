"""Direction of every metric, higher or lower is better, for tables and tests of differences."""

__all__ = ["DIRECTIONS"]

DIRECTIONS: dict[str, bool | None] = {
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
    "judge": True,
    "rating": True,
    "rating_relevance": True,
    "rating_coherence": True,
    "length": None,
    "kl": None,
}
"""True: higher is better; False: lower is; None: neither. Of signals the reward says which way they count."""
