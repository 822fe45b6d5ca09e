"""The section `model`: what is trained, and how it is loaded."""

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from cagsr.config.fields import AtLeastOne, Place, Section, Switch, Text

__all__ = ["Lora", "Model"]


class Lora(Section):
    """LoRA adapter that is trained instead of the weights."""

    path: Place | None = Field(
        default=None,
        description="Directory or hub name of a LoRA adapter of this model to go on from, by cagsr, PEFT or TRL; its "
        "rank, scale and modules are kept, leave the other keys out. null: a new one.",
    )
    r: AtLeastOne = Field(default=16, description="Rank of the adapter.")
    alpha: AtLeastOne = Field(
        default=32, description="Scale of the adapter; its output is multiplied by alpha / r."
    )
    use_rslora: Switch = Field(
        default=False,
        description="Multiply by alpha / sqrt(r) instead (rsLoRA): larger ranks then learn as fast.",
    )
    use_dora: Switch = Field(
        default=False,
        description="Train the length of each weight's rows beside it (DoRA). Slower; not with sampling.dtype nor "
        "sampling.engine: vllm.",
    )
    target_modules: Literal["all-linear"] | Annotated[list[Text], Field(min_length=1)] = Field(
        default="all-linear", description="Names of the modules that get an adapter."
    )

    @property
    def beside_path(self) -> list[str]:
        """The keys that are given though ``path`` leads to an adapter with settings of its own."""
        return [
            name for name in type(self).model_fields if name in self.model_fields_set - {"path"} and self.path
        ]

    @model_serializer(mode="wrap")
    def _path_alone(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # With a path the other keys say nothing, and would be in its way when a written config is read again.
        return write(self) if self.path is None else {"path": self.path}


class Model(Section):
    """The model that is trained, and how it is loaded."""

    name: Place | None = Field(
        default=None,
        description="Directory, GGUF file or hub name of the model; null: the built-in base of data.task.",
    )
    revision: Text | None = Field(default=None, description="Branch, tag or commit of a hub model.")
    architecture: Literal["auto", "causal", "encoder-decoder"] = Field(
        default="auto", description="Which kind of model it is; auto asks the model's own config."
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="Type of the weights in memory; training in bfloat16 needs lora (see train.mixed_precision).",
    )
    load_in_4bit: Switch = Field(
        default=False,
        description="Keep the frozen weights in four bits (NF4) and train lora on them (QLoRA), with bitsandbytes; not "
        "with sampling.dtype, sampling.engine: vllm, FSDP nor compare.",
    )
    trust_remote_code: Switch = Field(
        default=False, description="Run Python code that comes with a hub model."
    )
    target_language: Text | None = Field(
        default=None,
        description="Code of the language that a multilingual encoder-decoder (NLLB, M2M-100, mBART) writes, such as "
        "fra_Latn; null: what its generation config forces.",
    )
    source_language: Text | None = Field(
        default=None, description="Code of the prompts' language for such a model; null: its tokenizer's."
    )
    lora: Lora | None = Field(default=None, description="Train a LoRA adapter (PEFT) instead of all weights.")
