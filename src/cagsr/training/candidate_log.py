"""Rows of candidates.jsonl: some prompts of a step with all their candidates, rewards and attention."""

from dataclasses import dataclass
from typing import Any, cast

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from cagsr.rewards.salience import Salience
from cagsr.runs.turns import recorded
from cagsr.training.attention_summary import Look
from cagsr.training.step import Collected

__all__ = ["Shown", "token_spans"]

SMALLEST = 0.03
# About how many steps of a run keep attention, by far the longest part of a row.
STEPS_WITH_ATTENTION = 50


@dataclass(frozen=True)
class Shown:
    """Selection of the candidates that a run keeps: those of the first ``prompts`` prompts of every step.

    Every ``every`` steps, and at the first, their attention is kept too.
    """

    prompts: int
    tokenizer: PreTrainedTokenizerBase
    salience: Salience
    every: int

    @classmethod
    def of_run(
        cls, prompts: int, tokenizer: PreTrainedTokenizerBase, salience: Salience, steps: int
    ) -> "Shown":
        """The selection for a run of so many ``steps``."""
        return cls(prompts, tokenizer, salience, max(1, steps // STEPS_WITH_ATTENTION))

    def in_full(self, step: int) -> bool:
        """Whether the candidates of a step are kept with their attention, and shown on dashboards."""
        return step == 1 or step % self.every == 0

    def rows(self, step: int, collected: Collected) -> list[dict[str, Any]]:
        """The rows of candidates.jsonl for one step.

        turns               of a conversation: the role and the characters in ``prompt`` of each turn
        signals, weighted   raw, and what each added to the reward; ``weighted`` sums to ``reward``
        advantage           the mean over the response's tokens
        tokens              of each prompt token: its characters in ``prompt``
        salience, attended  of each prompt token: its weight, not normalised; the strongest attention it got
        segments            of each segment of the prompt its tokens, where its pieces are known or a signal has asked
                            for a knockout
        explained, looked   of each segment: how many nats it explains of the response, by knockout; how strongly the
                            response looked at it (`attention_summary.Look`)
        attention           ``response``: the characters of each response token in ``response``; ``weights``: for
                            each of them ``[prompt token, weight, prompt token, weight, ...]``, the largest first
        """
        scores, k, rows = collected.scores, collected.rollout.group_size, []
        for batch, looked in zip(collected.batches, collected.attended, strict=False):
            part, advantages = batch.rollout, batch.advantages
            assert advantages is not None, "a collected step has its advantages"
            for n, response in enumerate(part.responses):
                row = len(rows)
                if row == self.prompts * k:
                    return rows
                prompt, mask = part.prompts[n // k], part.prompt_mask[n // k]
                rows.append(
                    {
                        "prompt_index": prompt.index,
                        "prompt": prompt.text,
                        **recorded(prompt.text, prompt.turns),
                        "response": response,
                        "finished": bool(part.finished[n]),
                        "signals": dict(zip(scores.names, scores.signals[row].tolist(), strict=True)),
                        "weighted": dict(zip(scores.names, scores.weighted[row].tolist(), strict=True)),
                        "reward": float(scores.reward[row]),
                        "advantage": float(advantages[n].sum() / part.lengths[n].clamp(min=1)),
                        "tokens": [list(span) for span in prompt.offsets],
                        "salience": [round(weight, 3) for weight in self.salience.weigh(prompt)],
                        "attended": [round(value, 3) for value in looked.attended[n][mask].tolist()],
                    }
                )
                rows[-1] |= _segments(looked, n, k, mask)
                if self.in_full(step):
                    ids = part.response_ids[n][part.response_mask[n]].tolist()
                    spans = token_spans(self.tokenizer, ids, response)
                    if spans is not None:
                        rows[-1]["attention"] = _attention(looked, n, mask, spans)
        return rows


def _segments(looked: Look, n: int, k: int, prompt_mask: Tensor) -> dict[str, Any]:
    if looked.pieces is None:
        return {}
    pieces = [piece[prompt_mask].nonzero().flatten().tolist() for piece in looked.pieces[n // k]]
    found: dict[str, Any] = {"segments": [piece for piece in pieces if piece]}
    for name, values, form in (("explained", looked.nats, ".2f"), ("looked", looked.looked, ".3g")):
        if values is not None:
            numbers = zip(pieces, values[n].tolist(), strict=True)
            found[name] = [float(format(value, form)) for piece, value in numbers if piece]
    return found


def token_spans(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], text: str
) -> list[tuple[int, int]] | None:
    """Character span of ``text`` that each token wrote; None where decoding token by token gives another text.

    Tokens that write one character together all get its span, special tokens an empty one.
    """
    stream, position = DecodeStream(skip_special_tokens=True), 0
    backend = cast(Tokenizer, tokenizer.backend_tokenizer)
    special = set(tokenizer.all_special_ids)
    spans: list[tuple[int, int]] = []
    waiting: list[int] = []
    for number, token in enumerate(ids):
        spans.append((position, position))
        if token in special:
            continue
        try:
            piece = stream.step(backend, token)
        except Exception:  # tokenizers has no class of its own for text that changes with the next token
            return None
        waiting.append(number)
        if piece is not None:  # else a character that is not whole yet
            if not text.startswith(piece, position):
                return None
            for writer in waiting:
                spans[writer] = (position, position + len(piece))
            position, waiting = position + len(piece), []
    return spans if position == len(text) else None


def _attention(looked: Look, n: int, prompt_mask: Tensor, spans: list[tuple[int, int]]) -> dict[str, Any]:
    positions = (prompt_mask.cumsum(0) - 1).tolist()
    length = len(spans)
    rows = zip(looked.weights[n, :length].tolist(), looked.columns[n, :length].tolist(), strict=True)
    return {
        "response": [list(span) for span in spans],
        "weights": [
            [
                number
                for weight, column in zip(weights, columns, strict=True)
                if weight >= SMALLEST
                for number in (positions[column], round(weight, 2))
            ]
            for weights, columns in rows
        ],
    }
