"""The section `sampling`: how responses are sampled, and by which engine."""

from typing import Annotated, Literal, Self

from pydantic import Field

from cagsr.config.fields import AtLeastOne, Count, NotNegative, Positive, Section, Text

__all__ = ["Sampling", "Vllm"]


class Vllm(Section):
    """A vLLM server that samples responses in training: docs/guides/many-gpus.md has the command that starts it."""

    base_url: Text = Field(
        default="http://localhost:8000", description="Where the server is, without a path of its API."
    )
    group_port: Annotated[int, Field(ge=1, le=65535)] = Field(
        default=51216, description="Port on this machine at which the server fetches the weights."
    )
    timeout: Positive = Field(
        default=240.0,
        description="Seconds until the server must be up, and for each of the six attempts to get an answer.",
    )


class Sampling(Section):
    """How responses are sampled."""

    candidates: AtLeastOne = Field(default=8, description="Responses sampled for each prompt (K).")
    temperature: NotNegative = Field(
        default=1.0, description="Divides the logits; 0 takes the likeliest token."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="Sample from this share; 1 is all."
    )
    top_k: Count = Field(default=0, description="Sample from the k likeliest tokens; 0 is all.")
    min_new_tokens: Count = Field(
        default=0, description="Tokens before the end-of-sequence token is allowed."
    )
    max_new_tokens: AtLeastOne = Field(
        default=64, description="Longest response, end-of-sequence token included."
    )
    ignore_generation_config: list[Text] = Field(
        default_factory=list,
        description="Settings of the model's generation_config.json to leave out. Without it bad_words_ids (of one "
        "token), suppress_tokens and begin_suppress_tokens are kept in sampling and in scoring, and what depends on "
        "the words before, such as repetition_penalty, is refused.",
    )
    engine: Literal["policy", "vllm"] = Field(
        default="policy",
        description="Who writes the responses that are trained on; causal models only for vllm. A vLLM server draws "
        "by its own randomness: neither seed nor --resume gives the same responses again. Whatever is not trained "
        "on, evaluations among it, the policy writes.",
    )
    dtype: Literal["bfloat16"] | None = Field(
        default=None,
        description="bfloat16: a copy of the policy, rounded to it for every rollout and with LoRA merged, writes the "
        "responses that are trained on, and the loss is corrected for the rounding. Faster on a processor that "
        "multiplies bfloat16; needs half the memory of float32 weights once more. null: the policy itself writes.",
    )
    vllm: Vllm = Field(default=Vllm(), description="The server, for engine: vllm.")

    def greedy(self) -> Self:
        """The same settings with greedy decoding: one response a prompt, of the likeliest tokens."""
        return self.model_copy(update={"candidates": 1, "temperature": 0.0, "top_p": 1.0, "top_k": 0})
