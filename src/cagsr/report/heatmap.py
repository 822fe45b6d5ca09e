"""Heatmap of the attention from a response to its prompt, for a notebook or a file."""

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cagsr.data.in_memory import encode_in_memory
from cagsr.data.special_tokens import tokenised
from cagsr.errors import InputError, StorageError
from cagsr.evaluation.score import encode_responses, refuse_overlong
from cagsr.io.template_date import pinned_date
from cagsr.models.observing import observing
from cagsr.models.policy import Policy
from cagsr.types import Turn

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from peft import PeftModel

__all__ = ["Heatmap", "heatmap"]

FORMATS = (".svg", ".png", ".pdf")


@dataclass(frozen=True)
class Heatmap:
    """Attention of T response tokens to S prompt tokens, as the observer sees it; a notebook shows it by itself.

    attention        [T S]  float32 in [0, 1]: from the query that predicts response token t to prompt token j, mean
                            over heads and the ``layers`` read. Raw: a row sums to at most 1.
    prompt_tokens    S texts;  response_tokens  T texts. What each token writes; "…" for one that goes on with a
                     character of the token before, a special token by its name.
    special          the columns (S) and rows (T) whose token is a special one.
    layers           the numbers of the layers, counted from 0.
    """

    attention: Tensor
    prompt_tokens: tuple[str, ...]
    response_tokens: tuple[str, ...]
    special: tuple[frozenset[int], frozenset[int]]
    layers: tuple[int, ...]

    def figure(self) -> "Figure":
        """Draw a matplotlib figure, outside pyplot's state. Raises InputError where there is no matplotlib."""
        try:
            from cagsr.report.heatmap_figure import draw
        except ImportError as error:
            raise InputError(
                "heatmap: drawing needs matplotlib; install it: pip install matplotlib"
            ) from error
        return draw(self.attention, self.prompt_tokens, self.response_tokens, self.special)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the picture as .svg, .png or .pdf, by the name's ending. Raises InputError for another."""
        if Path(path).suffix not in FORMATS:
            raise InputError(f"heatmap: {os.fspath(path)!r} must end in {', '.join(FORMATS)}")
        figure = self.figure()
        # The renderer of PNG refuses more pixels than 2^16 in a row or column.
        dpi = min(150.0, 2**16 // max(figure.get_size_inches()))
        try:
            figure.savefig(path, dpi=dpi)
        except OSError as error:
            raise StorageError(f"heatmap: {os.fspath(path)} cannot be written: {error.strerror}") from error

    def _repr_svg_(self) -> str:
        written = io.StringIO()
        self.figure().savefig(
            written, format="svg", metadata={"Date": None}
        )  # the same picture, the same text
        return written.getvalue()


@pinned_date()
def heatmap(
    model: "str | os.PathLike[str] | PreTrainedModel | PeftModel | Policy",
    tokenizer: PreTrainedTokenizerBase | None,
    prompt: str | Sequence[Mapping[str, Any]],
    response: str,
    *,
    layers: str | list[int] = "all",
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Heatmap:
    """Attention heatmap [T S] of a model that reads a response to a prompt, the end token among its rows.

    model, tokenizer, prompt, response, layers and chat_template_kwargs are as of `cagsr.score`: a name, a loaded model
    (left as it was) or a `Policy`; a text or one conversation; a text. Shown by a notebook, saved by ``.save``.

    Raises what `cagsr.score` raises.
    """
    template = {**(chat_template_kwargs or {})}
    with observing(model, tokenizer, layers=layers) as policy:
        goes_on = policy.readable.kind == "causal"
        prompts = encode_in_memory([prompt], policy.tokenizer, template=template, goes_on=goes_on)
        rows = encode_responses(policy, prompts, [response])
        refuse_overlong(policy, prompts, rows)
        with torch.no_grad():
            seen = policy.observe(policy.given_ids(prompts, rows, [response]))
        tokens = policy.tokenizer
        turn = Turn("assistant", 0, len(response))
        offsets = tokenised(response, [turn], tokens, add_special_tokens=False).offsets
        sides = (
            (prompts[0].text, prompts[0].ids, prompts[0].offsets),
            (response, rows[0], [*offsets, (0, 0)]),
        )
        columns, written = (_tokens(tokens, *side) for side in sides)
        return Heatmap(
            seen.attention[0].cpu(), columns[0], written[0], (columns[1], written[1]), policy.readable.layers
        )


def _tokens(
    tokenizer: PreTrainedTokenizerBase, text: str, ids: Sequence[int], offsets: Sequence[Sequence[int]]
) -> tuple[tuple[str, ...], frozenset[int]]:
    """The text that each token writes, and which tokens are special."""
    added = tokenizer.added_tokens_decoder
    special = frozenset(n for n, token in enumerate(ids) if token in added and added[token].special)
    labels = []
    for n, (token, (start, end)) in enumerate(zip(ids, offsets, strict=True)):
        if start == end or n in special:
            label = str(tokenizer.convert_ids_to_tokens(int(token)))
        elif n and tuple(offsets[n - 1]) == (start, end):
            label = "…"  # the bytes of one character are several tokens
        else:
            label = text[start:end]
        labels.append(label)
    return tuple(labels), special
