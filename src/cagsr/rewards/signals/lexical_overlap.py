"""Lexical overlap: salience of the prompt's words that occur in the response, without attention."""

__all__ = ["lexical_overlap"]

from collections import defaultdict

from torch import Tensor

from cagsr.data.words import prompt_words, text_words
from cagsr.types import Evidence, Prompt


def lexical_overlap(evidence: Evidence) -> Tensor:
    """[N] share, by salience, of the salient prompt words that occur in the response's text.

    Whole words, NFKC and case-folded; a word weighs what its tokens weigh, wherever it stands in the prompt.

    Range [0, 1]; higher is better; 0 for an empty response and where no word is salient. Blind to
    paraphrase: it is the control that an attention reward must be compared with.
    """
    rollout = evidence.rollout
    weights_of_prompts = [
        _word_weights(prompt, weights[mask].tolist())
        for prompt, weights, mask in zip(rollout.prompts, evidence.salience, rollout.prompt_mask, strict=True)
    ]
    values = []
    for row, response in enumerate(rollout.responses):
        weights = weights_of_prompts[row // rollout.group_size]
        said = set(text_words(response))
        found = sum(weight for word, weight in weights.items() if word in said)
        values.append(found / (sum(weights.values()) or 1.0))
    return evidence.salience.new_tensor(values)


def _word_weights(prompt: Prompt, token_weights: list[float]) -> dict[str, float]:
    words = prompt_words(prompt)
    sharing: dict[int, int] = defaultdict(int)
    for word in words:
        for token in word.tokens:
            sharing[token] += 1
    weights: dict[str, float] = defaultdict(float)
    for word in words:
        # A token that spans several words gives each its part.
        weights[word.key] += sum(token_weights[token] / sharing[token] for token in word.tokens)
    return weights
