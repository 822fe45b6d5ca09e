"""The sections of a config, by subject: every key, its range, its default, and what it means."""

from pydantic import Field

from cagsr.config.fields import Section
from cagsr.config.schema.data import FILES, IN_MEMORY, NOT_OF_TEMPLATES, Data, Part
from cagsr.config.schema.metrics import Compare, Judge, Metrics
from cagsr.config.schema.model import Lora, Model
from cagsr.config.schema.reward import RewardSettings, SalienceSettings, Term
from cagsr.config.schema.sampling import Sampling, Vllm
from cagsr.config.schema.sft import Scratch, Sft
from cagsr.config.schema.training import AlgorithmSettings, Limit, Loss, Run, Train, WatchSettings

__all__ = [
    "FILES",
    "IN_MEMORY",
    "NOT_OF_TEMPLATES",
    "AlgorithmSettings",
    "Compare",
    "Data",
    "Judge",
    "Limit",
    "Lora",
    "Loss",
    "Metrics",
    "Model",
    "Part",
    "RewardSettings",
    "Run",
    "SalienceSettings",
    "Sampling",
    "Scratch",
    "Sections",
    "Sft",
    "Term",
    "Train",
    "Vllm",
    "WatchSettings",
]


class Sections(Section):
    """All sections of a config together."""

    model: Model = Field(default=Model(), description="What to train.")
    data: Data = Field(default=Data(), description="Prompts to train and evaluate on.")
    sampling: Sampling = Field(default=Sampling(), description="How responses are sampled.")
    reward: RewardSettings = Field(default=RewardSettings(), description="What a good response is.")
    algorithm: AlgorithmSettings = Field(
        default=AlgorithmSettings(), description="How rewards become updates."
    )
    train: Train = Field(default=Train(), description="The loop and the optimizer.")
    watch: WatchSettings = Field(default=WatchSettings(), description="Limits that tell a collapsing run.")
    run: Run = Field(default=Run(), description="Where a run is recorded.")
    sft: Sft = Field(default=Sft(), description="Supervised training on references (cagsr sft).")
    metrics: Metrics = Field(default=Metrics(), description="What responses are measured by.")
    compare: Compare = Field(default=Compare(), description="Systems side by side (cagsr compare).")
