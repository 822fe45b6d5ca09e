"""ROUGE-L of a response against several references, by the package rouge-score."""

from collections.abc import Callable, Sequence

from cagsr.errors import InputError

__all__ = ["rouge_l"]


def rouge_l() -> Callable[[str, Sequence[str]], float]:
    """``measure(response, references)``: the largest F1 of the longest common subsequence, in [0, 1], higher better.

    By the package rouge-score with its stemmer: words are runs of a-z and 0-9 in lower case, so text in another
    script has none and gets 0. The package scores one response against all of its references and takes the best.

    Raises InputError where rouge-score is not installed; ``measure`` raises ValueError without a reference.
    Source: Lin, ROUGE: A Package for Automatic Evaluation of Summaries, 2004.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise InputError(
            "metrics.rouge needs rouge-score: pip install rouge-score, or set metrics.rouge to false"
        ) from error
    scorer = RougeScorer(["rougeL"], use_stemmer=True)

    def measure(response: str, references: Sequence[str]) -> float:
        if not references:
            raise ValueError("no reference to compare with")
        return float(scorer.score_multi(list(references), response)["rougeL"].fmeasure)

    return measure
