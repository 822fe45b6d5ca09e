"""ROUGE-L of two token sequences: F1 of the longest common subsequence, fast enough for a reward."""

__all__ = ["rouge_l"]

from collections import defaultdict
from collections.abc import Hashable, Sequence


def rouge_l(response: Sequence[Hashable], reference: Sequence[Hashable]) -> float:
    """F1 of the longest common subsequence, in [0, 1], higher is more alike; 0 where either is empty.

    Source: ROUGE-L, Lin 2004; the length in bit-parallel form, Hyyrö 2004: a row of the table is one integer.
    """
    if not response or not reference:
        return 0.0
    places: dict[Hashable, int] = defaultdict(int)
    for place, item in enumerate(response):
        places[item] |= 1 << place
    every = (1 << len(response)) - 1
    unmatched = every
    for item in reference:
        matches = unmatched & places.get(item, 0)
        unmatched = ((unmatched + matches) | (unmatched - matches)) & every
    common = len(response) - unmatched.bit_count()
    return 2 * common / (len(response) + len(reference))
