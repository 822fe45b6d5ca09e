"""The section `sft`: supervised training on references."""

from typing import Annotated, Literal

from pydantic import Field

from cagsr.config.fields import AtLeastOne, Count, LearningRate, NotNegative, Place, Section

__all__ = ["Scratch", "Sft"]


class Scratch(Section):
    """Size and shape of a new model, for `cagsr sft`."""

    architecture: Literal["t5", "bart", "llama"] = Field(default="t5", description="Shape of the new model.")
    layers: AtLeastOne = Field(default=3, description="Layers (of the encoder and of the decoder).")
    hidden: AtLeastOne = Field(default=128, description="Width; a multiple of heads.")
    heads: AtLeastOne = Field(default=4, description="Attention heads.")
    vocabulary: Annotated[int, Field(ge=300, le=10**6)] = Field(
        default=2000, description="Size of the tokenizer that is trained on the data."
    )


class Sft(Section):
    """Supervised training on references, for `cagsr sft` only."""

    directory: Place = Field(
        default="runs/base", description="Where cagsr sft writes: the base is in model/ there."
    )
    steps: AtLeastOne = Field(default=1000, description="Optimizer steps.")
    batch_size: AtLeastOne = Field(default=32, description="Rows per step.")
    learning_rate: LearningRate = Field(default=5e-4, description="Peak learning rate of AdamW.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="linear", description="After the warm-up."
    )
    warmup_steps: Count = Field(default=0, description="Steps over which the learning rate rises from 0.")
    weight_decay: NotNegative = Field(default=0.0, description="AdamW's decay.")
    max_reference_tokens: AtLeastOne = Field(
        default=128, description="Longer references are cut, and counted."
    )
    save_every: Count = Field(
        default=500, description="Checkpoint after so many steps; 0: only when stopped."
    )
    scratch: Scratch | None = Field(
        default=None, description="Build a new small model and its tokenizer instead of loading model.name."
    )
