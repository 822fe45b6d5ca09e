"""The section `reward`: the terms of the reward, the salience of prompt tokens, the observer."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from cagsr.config.fields import AtLeastOne, Count, NotNegative, Place, Scalar, Section, Text, place

__all__ = ["RewardSettings", "SalienceSettings", "Term"]


class Term(Section):
    """One signal of a reward, its weight, and how it is standardised before the weighted sum."""

    signal: Text = Field(description="Name of a signal, or dotted path of a function of your own.")
    weight: float = Field(default=1.0, description="Factor in the sum; negative turns the signal around.")
    standardise: Literal["group", "batch", "none"] = Field(
        default="group",
        description="Mean 0 and deviation 1 within a prompt's candidates, within the step, or raw.",
    )
    options: dict[str, Scalar | list[Scalar]] = Field(
        default_factory=dict, description="Keyword arguments of the signal."
    )

    @field_validator("options")
    @classmethod
    def _expand_path(cls, options: dict[str, Any]) -> dict[str, Any]:
        path = options.get("path")
        return {**options, "path": place(path)} if isinstance(path, str) else options

    def __init__(self, signal: Any = None, /, **given: Any) -> None:
        """``Term("coverage", weight=2.0)``: the signal's name may stand first."""
        super().__init__(**(given if signal is None else {"signal": signal, **given}))


class SalienceSettings(Section):
    """Which prompt tokens a response ought to cover."""

    kind: Literal["uniform", "idf", "span", "column", "pieces"] | None = Field(
        default=None,
        description="How prompt tokens are weighted: all content words alike, rare words more, only a marked span, a "
        "column of the data, or the pieces that people write (list items, fields, clauses), all alike, without what "
        "all prompts share. null: what the preset says, else uniform.",
    )
    most: AtLeastOne = Field(
        default=24, description="Most pieces of a prompt; neighbours of more are taken together (pieces)."
    )
    roles: Annotated[
        list[Literal["last-user", "user", "system", "developer", "assistant", "tool"]], Field(min_length=1)
    ] = Field(
        default=["last-user"],
        description="Whose turns of a conversation count: last-user (the question), user (all of the user's), system, "
        "developer, assistant, tool. Not for kind: column, which names what counts wherever it stands.",
    )
    power: NotNegative = Field(default=1.0, description="Exponent of the inverse document frequency (idf).")
    start: Text | None = Field(
        default=None, description="Text that the span begins after; null: the beginning."
    )
    end: Text | None = Field(default=None, description="Text that the span ends before; null: the end.")
    pattern: Text | None = Field(
        default=None,
        description="Regular expression of the span (its first group), instead of start and end.",
    )


class RewardSettings(Section):
    """The reward: a preset or terms, and the observer that it is read from."""

    preset: Place = Field(
        default="robust",
        description="Name of a built-in preset, or path of a preset file. robust is attention-values (attention where "
        "prompts have no values) or knockout, as the base's own heads say before the first step, without labels.",
    )
    terms: Annotated[list[Term], Field(min_length=1)] | None = Field(
        default=None, description="The sum spelt out, in place of the preset's."
    )
    observer: Literal["reference", "policy"] = Field(
        default="reference",
        description="Whose attention is read: the frozen start, or the model being trained.",
    )
    layers: Literal["all", "last", "last_half"] | Annotated[list[Count], Field(min_length=1)] = Field(
        default="all", description="Attention layers to read."
    )
    heads: Place | None = Field(
        default=None,
        description="Which heads of those layers are read: all; learn, those that tell what the base's own responses "
        "to some training prompts took up (found before the first step, without labels, and kept as heads.json in the "
        "run); or such a file. null: what the preset says, else all.",
    )
    salience: SalienceSettings = Field(
        default_factory=SalienceSettings, description="Weights of the prompt tokens."
    )
