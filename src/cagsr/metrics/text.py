"""Word-level text metrics: exact match, word count, distinct n-grams."""

import re
import unicodedata
from collections.abc import Sequence

__all__ = ["distinct", "exact_match", "normalised", "word_count"]

ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalised(text: str) -> str:
    """Text normalised to compare answers: NFKC, case-folded, without punctuation and a, an, the, single spaces.

    Source: Rajpurkar et al., SQuAD, arXiv 1606.05250, its evaluation script.
    Differs: NFKC and case-folding rather than lower case; punctuation of all scripts, not of ASCII alone.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    plain = "".join(character for character in folded if not unicodedata.category(character).startswith("P"))
    return " ".join(ARTICLES.sub(" ", plain).split())


def exact_match(response: str, references: Sequence[str]) -> float:
    """1 where the response equals one of the references after `normalised`, else 0; higher is better."""
    return float(normalised(response) in {normalised(reference) for reference in references})


def word_count(text: str) -> int:
    """Number of words, separated by white space."""
    return len(text.split())


def distinct(text: str, n: int = 2) -> float:
    """Distinct n-grams / n-grams of one response, in (0, 1]; higher is more varied. 1 where it has no n-gram.

    Words are as in `normalised`, articles kept out. One number a response, so that it can be bootstrapped over
    prompts; it sees repetition within a response only. Source: Li et al., arXiv 1510.03055.
    Differs: per response; the paper's is of all responses of a system together.
    """
    words = normalised(text).split()
    grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0
