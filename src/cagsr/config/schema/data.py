"""The section `data`: where prompts come from, and how they are encoded."""

from typing import Literal

from pydantic import Field

from cagsr.config.fields import AtLeastOne, Place, Scalar, Section, Seed, Switch, Text
from cagsr.config.registry import TASKS

__all__ = ["FILES", "IN_MEMORY", "NOT_OF_TEMPLATES", "Data"]

# Data sets that a Python program handed over: what stands for them in config.yaml.
IN_MEMORY = ("<train_dataset>", "<eval_dataset>")
# What a data.source ends with, in whatever case, that is a file and neither a directory nor a hub name.
FILES = (
    *(f".{ending}{packed}" for ending in ("jsonl", "csv", "tsv", "json", "ndjson") for packed in ("", ".gz")),
    ".parquet",
    ".arrow",
)

# Options of apply_chat_template that are no variables of a template: the program sets them, or a column does.
NOT_OF_TEMPLATES = frozenset(
    ["add_generation_prompt", "continue_final_message", "return_dict", "return_tensors", "tokenize", "tools"]
)


class Data(Section):
    """Where prompts and references come from, and how they are encoded."""

    task: Literal[tuple(TASKS)] | None = Field(  # pyright: ignore[reportInvalidTypeForm]
        default=None, description="A built-in generated task; give this or source."
    )
    count: AtLeastOne = Field(default=2000, description="Training prompts to generate for task.")
    source: Place | None = Field(
        default=None,
        description="A .jsonl, .json, .csv or .tsv file (each also with .gz), a .parquet or .arrow file, a directory "
        "saved by datasets, or a hub name; give this or task.",
    )
    config_name: Text | None = Field(default=None, description="Configuration of a hub data set.")
    revision: Text | None = Field(
        default=None,
        description="Branch, tag or commit of a hub data set. One that is a loading script, which datasets no "
        "longer runs, has its rows as Parquet in refs/convert/parquet.",
    )
    split: Text = Field(
        default="train", description="Split of a datasets directory or hub data set to train on."
    )
    evaluation_source: Place | None = Field(default=None, description="Prompts for evaluation; null: source.")
    evaluation_split: Text | None = Field(
        default=None, description="Split of evaluation_source (or source) to evaluate on."
    )
    holdout_column: Text | None = Field(
        default=None,
        description="Keep a fifth of source out of training, by a stable hash of this column: one tenth for "
        "evaluation during training (development), one for cagsr eval (heldout). null: train on all of it.",
    )
    evaluation_count: AtLeastOne = Field(default=100, description="Evaluate on at most so many prompts.")
    prompt_column: Text = Field(
        default="prompt",
        description="Column of prompts: text, or a list of messages, of which a last turn of the assistant is "
        "continued. Absent: 'messages' (whole conversations, whose last answer is the reference), or the columns of "
        "ShareGPT or Alpaca (docs/guides/data.md).",
    )
    reference_column: Text | None = Field(
        default=None,
        description="Column of reference answers; null: 'reference' or 'completion' where there is one.",
    )
    salience_column: Text | None = Field(
        default=None,
        description="Column that lists the parts of a prompt that matter, each of them a piece, for "
        "reward.salience.kind: column.",
    )
    checker: Text | None = Field(
        default=None,
        description="What judges responses in evaluation: a built-in task's name or a dotted path.",
    )
    chat_template_kwargs: dict[str, Scalar | list[Scalar]] = Field(
        default_factory=dict,
        description="Variables of the chat template, such as enable_thinking: false. Those in a row's own column "
        "chat_template_kwargs win; its column tools goes to the template too.",
    )
    special_tokens: Literal["text", "control"] = Field(
        default="text",
        description="What special tokens spelt in prompts of plain text are: text, or control tokens, for prompts "
        "that a chat template rendered already. In conversations they are text.",
    )
    max_prompt_tokens: AtLeastOne | None = Field(
        default=None, description="Longest prompt, template included; null: what the model's context leaves."
    )
    overlong: Literal["error", "drop", "truncate_left", "truncate_right"] = Field(
        default="error", description="What to do with a longer prompt."
    )
    skip_invalid: Switch = Field(
        default=False, description="Drop and count rows that cannot be used, not refuse."
    )
    seed: Seed = Field(default=0, description="Seed of generated prompts.")
