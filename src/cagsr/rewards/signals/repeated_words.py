"""Repeated words: share of the response's content words that stood in it before."""

__all__ = ["repeated_words"]

from collections import Counter

from torch import Tensor

from cagsr.data.words import STOP_WORDS, prompt_words, text_words
from cagsr.types import Evidence


def repeated_words(evidence: Evidence) -> Tensor:
    """[N] ``-(content words said again / content words)`` of the response's text.

    Content words are those that are no English stop word. A word that the prompt's turns say k times may be said k
    times: "The Mill, near The Mill" is no repetition.

    Range (-1, 0]; higher is better; 0 for a response without content words. A fact told again in the next sentence
    ("an Italian pub ... with Italian food") repeats words, and seldom the trigrams of `repetition`; told again in other
    words it is seen by `retold`, which asks the observer for every piece. Longer texts repeat more, so compare
    responses to one prompt. Words are not inflected, and of other languages function words count too.

    Source: experiments of the project (docs/lab-notes.md); no attention is read.
    """
    rollout = evidence.rollout
    allowed = [Counter(word.key for word in prompt_words(prompt)) for prompt in rollout.prompts]
    shares = []
    for row, response in enumerate(rollout.responses):
        words = [word for word in text_words(response) if word not in STOP_WORDS]
        in_prompt = allowed[row // rollout.group_size]
        again = sum(max(0, said - max(1, in_prompt[word])) for word, said in Counter(words).items())
        shares.append(0 - again / max(len(words), 1))
    return evidence.salience.new_tensor(shares)
