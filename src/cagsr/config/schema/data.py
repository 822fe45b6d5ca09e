"""The section `data`: where prompts come from, and how they are encoded."""

from typing import Annotated, Literal

from pydantic import Field

from cagsr.config.fields import AtLeastOne, Place, Positive, Scalar, Section, Seed, Switch, Text
from cagsr.config.registry import TASKS

__all__ = ["FILES", "IN_MEMORY", "NOT_OF_TEMPLATES", "Data", "Part"]

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


class Part(Section):
    """One of several data sets; a key that is null is as in `data`."""

    path: Place = Field(description="A file, a directory or a hub name, as data.source.")
    weight: Positive | None = Field(
        default=None,
        description="Share of the prompts of a pass, in proportion to the other weights; a weight for each, or for "
        "none: then every prompt comes once in a pass.",
    )
    split: Text | None = Field(default=None, description="As data.split.")
    config_name: Text | None = Field(default=None, description="As data.config_name.")
    revision: Text | None = Field(default=None, description="As data.revision.")
    prompt_column: Text | None = Field(default=None, description="As data.prompt_column.")
    reference_column: Text | None = Field(default=None, description="As data.reference_column.")


Sources = Place | Annotated[list[Place | Part], Field(min_length=1)]


class Data(Section):
    """Where prompts and references come from, and how they are encoded."""

    task: Literal[tuple(TASKS)] | None = Field(  # pyright: ignore[reportInvalidTypeForm]
        default=None, description="A built-in generated task; give this or source."
    )
    count: AtLeastOne = Field(default=2000, description="Training prompts to generate for task.")
    source: Sources | None = Field(
        default=None,
        description="A .jsonl, .json, .csv or .tsv file (each also with .gz), a .parquet or .arrow file, a directory "
        "saved by datasets, or a hub name; several as a list, or files by a pattern with *. Give this or task.",
    )
    streaming: Switch = Field(
        default=False,
        description="Read hub data sets row by row, and no further than the steps of the run need prompts.",
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
    evaluation_source: Sources | None = Field(
        default=None, description="Prompts for evaluation, one or several as in source; null: source."
    )
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

    @property
    def name(self) -> str:
        """What the prompts are called: the task, or the names of the data sets."""
        return self.task or " + ".join(part.path for part in self.parts())

    def parts(self, evaluation: bool = False) -> list[Part]:
        """The data sets of ``source``, or those named for evaluation, each with all that is to be known to read it."""
        named = self.evaluation_source if evaluation and self.evaluation_source else self.source
        entries = named if isinstance(named, list) else [] if named is None else [named]
        usual = {key: getattr(self, key) for key in Part.model_fields if key not in ("path", "weight")}
        if evaluation and self.evaluation_split:
            usual["split"] = self.evaluation_split
        found = [
            {"path": one} if isinstance(one, str) else one.model_dump(exclude_none=True) for one in entries
        ]
        if evaluation and not self.evaluation_source:  # a part's own split is what is trained on
            found = [{key: value for key, value in one.items() if key != "split"} for one in found]
        return [Part.model_construct(**{"weight": None, **usual, **one}) for one in found]
