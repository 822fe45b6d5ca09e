"""What the prompts of a data set have in common, found by counting: its instruction, its headings, its template."""

from collections import Counter
from collections.abc import Iterable, Iterator

import regex as re

from cagsr.rewards.pieces.spans import WORD, Span, sentences_of

__all__ = ["Common"]

COMMON = 0.8
"""Share of a data set's prompts from which on a sentence or a run of words belongs to the data set, not to a prompt."""
RUN = 3
"""Words that such a run has at least: a single word, such as a field's name, is part of the field."""


class Common:
    """What a data set's prompts have in common: sentences, and runs of words, that stand in nearly all of them."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        sentences, runs, documents = Counter[str](), Counter[tuple[str, ...]](), 0
        for text in dict.fromkeys(texts):
            documents += 1
            sentences.update({_key(text[start:stop]) for start, stop in sentences_of(text, 0, len(text))})
            runs.update({run for _, run in _runs(text, 0, len(text))})
        # One prompt, or the same again, says nothing of what a data set has in common.
        enough = max(2, COMMON * documents)
        self._sentences = {sentence for sentence, count in sentences.items() if count >= enough}
        self._runs = {run for run, count in runs.items() if count >= enough}

    def spans(self, text: str, start: int, stop: int) -> list[Span]:
        """The parts of ``text[start:stop]`` that belong to the data set, in order."""
        found = [
            span for span in sentences_of(text, start, stop) if _key(text[slice(*span)]) in self._sentences
        ]
        found += [span for span, run in _runs(text, start, stop) if run in self._runs]
        return _united(found)


def _key(text: str) -> str:
    return " ".join(WORD.findall(text.casefold()))


def _runs(text: str, start: int, stop: int) -> Iterator[tuple[Span, tuple[str, ...]]]:
    words = list(WORD.finditer(text, start, stop))
    for first in range(len(words) - RUN + 1):
        run = words[first : first + RUN]
        # A run reaches over no line, sentence, field or list: there something else begins.
        if not re.search(r"[\n:;,|=\[(]|[.!?]\s", text[run[0].start() : run[-1].end()]):
            yield (run[0].start(), run[-1].end()), tuple(word[0].casefold() for word in run)


def _united(spans: Iterable[Span]) -> list[Span]:
    united: list[Span] = []
    for start, stop in sorted(spans):
        if united and start <= united[-1][1]:
            united[-1] = (united[-1][0], max(stop, united[-1][1]))
        else:
            united.append((start, stop))
    return united
