"""One prompt as the model sees it: its text, its tokens, what has to be covered, and what ends a response."""

from collections.abc import Sequence

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from cagsr.data import readers as sources
from cagsr.data.prompts import encode, map_columns
from cagsr.io.terminal import say
from cagsr.models.load import load_tokenizer
from cagsr.models.policy import Policy
from cagsr.rewards.salience import Column, Salience, Uniform
from cagsr.rewards.segments import runs
from cagsr.types import Prompt

__all__ = ["examined_prompt", "say_prompt"]

EXAMPLE = "Write a note about The Vaults, a restaurant near the river."
LONGEST, TOKENS, PIECES = 240, 4, 12


def say_prompt(console: Console, prompts: Sequence[Prompt], policy: Policy, salience: Salience) -> None:
    """Print the first of the prompts as the model sees it, in a few lines."""
    for line in _lines(prompts[0], policy.tokenizer, policy.eos_ids, salience):
        say(console, line)


def examined_prompt(
    model: str, revision: str | None, data: str | None, ends: Sequence[int], is_causal: bool
) -> list[str]:
    """The lines of `say_prompt` for the first prompt of a file, or for an example, before anything is trained.

    Raises InputError for data that cannot be read.
    """
    tokenizer = load_tokenizer(model, revision=revision)
    example = [{"role": "user", "content": EXAMPLE}] if tokenizer.chat_template else EXAMPLE
    rows = sources.rows_of([{"prompt": example}], "example") if data is None else sources.read(data)[:1]
    (prompt,), report = encode(map_columns(rows), tokenizer, goes_on=is_causal)
    return [*_lines(prompt, tokenizer, ends, Uniform()), *(f"warning: {line}" for line in report.warnings())]


def _lines(
    prompt: Prompt, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int], salience: Salience
) -> list[str]:
    found = salience.divide(prompt)
    if found is None:
        found = runs(prompt, [weight > 0 for weight in salience.weigh(prompt)])
    if isinstance(salience, Column):  # a text may stand in several places, of which the first is shown
        found = [_first(tokens) for tokens in found]
    pieces = [prompt.text[prompt.offsets[run[0]][0] : prompt.offsets[run[-1]][1]].strip() for run in found]
    shown = [repr(piece)[1:-1] for piece in pieces[:PIECES]] + ["..."] * (len(pieces) > PIECES)
    tokens = [repr(tokenizer.decode([token])) for token in prompt.ids]
    first = tokens if len(tokens) <= 2 * TOKENS else [*tokens[:TOKENS], "...", *tokens[-TOKENS:]]
    named = [f"{tokenizer.convert_ids_to_tokens(token)} ({token})" for token in ends]
    text = repr(prompt.text)
    if len(text) > LONGEST:
        text = f"{text[: LONGEST * 2 // 3]} ... {text[-LONGEST // 3 :]}"
    return [
        f"the prompt of row {prompt.index + 1} as the model reads it: {text}",
        f"  {len(prompt.ids)} tokens: {' '.join(first)}",
        f"  to be covered, {len(pieces)} pieces: {' | '.join(shown) or 'nothing'}",
        f"  a response ends with {' or '.join(named)}",
    ]


def _first(tokens: list[int]) -> list[int]:
    """Those of the tokens, in order, that follow one another from the first on."""
    return [token for number, token in enumerate(tokens) if token == tokens[0] + number]
