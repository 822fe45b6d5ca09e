"""ROUGE-L with the reference: the conventional reward that needs one."""

__all__ = ["reference_overlap"]

from torch import Tensor

from cagsr.data.words import text_words
from cagsr.errors import InputError
from cagsr.metrics.common_subsequence import rouge_l
from cagsr.types import Evidence, Prompt


def reference_overlap(evidence: Evidence) -> Tensor:
    """[N] ROUGE-L F1 of the response's words with the reference's; the largest over several references.

    References are the row's ``references``, a list of texts, or else its ``reference``. Range [0, 1]; higher is
    nearer to a reference; 0 for a response without words. Raises InputError for a row without a reference.

    Source: ROUGE-L, Lin 2004.
    Differs: words are those of any script, case-folded (`words.text_words`); the rouge-score package knows runs
    of a-z and 0-9 only, and parts a word at its apostrophe. On plain English the two are the same.
    """
    rollout = evidence.rollout
    references = [[text_words(text) for text in _references(prompt)] for prompt in rollout.prompts]
    values = []
    for row, response in enumerate(rollout.responses):
        words = text_words(response)
        values.append(max(rouge_l(words, reference) for reference in references[row // rollout.group_size]))
    return evidence.salience.new_tensor(values)


def _references(prompt: Prompt) -> list[str]:
    given = prompt.row.get("references") or prompt.row.get("reference")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts) or not texts:
        has = f"no text as that, but {given!r:.40}" if given not in (None, "", []) else "none"
        raise InputError(
            f"signal 'reference_overlap' needs a reference, and the row of prompt index {prompt.index} has {has}. "
            "Name data.reference_column, or choose a reward that needs no references."
        )
    return list(texts)
