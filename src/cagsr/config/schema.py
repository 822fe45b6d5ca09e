"""The sections of a config: every key, its range, its default, and what it means."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from cagsr.config.fields import (
    AtLeastOne,
    Count,
    LearningRate,
    NotNegative,
    Place,
    Positive,
    Scalar,
    Section,
    Seed,
    Share,
    Switch,
    Text,
    place,
)
from cagsr.config.registry import ESTIMATORS, TASKS

__all__ = [
    "FILES",
    "IN_MEMORY",
    "NOT_OF_TEMPLATES",
    "AlgorithmSettings",
    "Data",
    "Limit",
    "Lora",
    "Loss",
    "Model",
    "RewardSettings",
    "Run",
    "SalienceSettings",
    "Sampling",
    "Scratch",
    "Sft",
    "Term",
    "Train",
    "Vllm",
    "WatchSettings",
]

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


class Lora(Section):
    """LoRA adapter that is trained instead of the weights."""

    r: AtLeastOne = Field(default=16, description="Rank of the adapter.")
    alpha: AtLeastOne = Field(
        default=32, description="Scale of the adapter; its output is multiplied by alpha / r."
    )
    target_modules: Literal["all-linear"] | Annotated[list[Text], Field(min_length=1)] = Field(
        default="all-linear", description="Names of the modules that get an adapter."
    )


class Model(Section):
    """The model that is trained, and how it is loaded."""

    name: Place | None = Field(
        default=None,
        description="Directory or hub name of the model; null: the built-in base of data.task.",
    )
    revision: Text | None = Field(default=None, description="Branch, tag or commit of a hub model.")
    architecture: Literal["auto", "causal", "encoder-decoder"] = Field(
        default="auto", description="Which kind of model it is; auto asks the model's own config."
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="Type of the weights in memory; training in bfloat16 needs lora (see train.mixed_precision).",
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
        description="Column with the parts of a prompt that matter, for reward.salience.kind: column.",
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
    vllm: Vllm = Field(default=Vllm(), description="The server, for engine: vllm.")

    def greedy(self) -> Self:
        """The same settings with greedy decoding: one response a prompt, of the likeliest tokens."""
        return self.model_copy(update={"candidates": 1, "temperature": 0.0, "top_p": 1.0, "top_k": 0})


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
        default="robust", description="Name of a built-in preset, or path of a preset file."
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


class Loss(Section):
    """The policy loss and its options."""

    name: Text = Field(
        default="clipped", description="Name of a policy loss, or dotted path of a function of your own."
    )
    options: dict[str, Scalar | list[Scalar]] = Field(
        default_factory=dict,
        description="Keyword arguments of the loss. clipped: clip (0.2), the furthest that the probability ratio may "
        "move from 1 in one rollout.",
    )


class AlgorithmSettings(Section):
    """The reinforcement-learning algorithm: estimator, loss, KL penalty."""

    name: Literal[tuple(ESTIMATORS)] = Field(  # pyright: ignore[reportInvalidTypeForm]
        default="grpo", description="How to update."
    )
    kl_coefficient: NotNegative = Field(default=0.05, description="Price of moving away from the reference.")
    kl_target: Positive | None = Field(
        default=None,
        description="KL (nats a response) that an adaptive coefficient aims at; null keeps it fixed.",
    )
    kl_placement: Literal["auto", "reward", "loss"] = Field(
        default="auto",
        description="Where the KL is charged; auto: in the reward for ppo, in the loss otherwise.",
    )
    loss: Loss = Field(default_factory=Loss, description="The policy loss of each token.")
    value_clip: Positive = Field(default=0.2, description="Furthest a value may move in one rollout (ppo).")
    value_coefficient: NotNegative = Field(default=0.1, description="Weight of the value loss (ppo).")
    gamma: Share = Field(default=1.0, description="Discount per token (ppo).")
    gae_lambda: Share = Field(default=0.95, description="Lambda of generalised advantage estimation (ppo).")
    loss_normalisation: Literal["token", "sequence", "constant"] = Field(
        default="token", description="Divide by all tokens, by each response's length, or by max_new_tokens."
    )
    epochs: AtLeastOne = Field(default=1, description="Passes over each rollout.")
    minibatches: AtLeastOne = Field(
        default=1, description="Optimizer steps per pass; divides prompts_per_step."
    )
    entropy_coefficient: NotNegative = Field(default=0.0, description="Weight of an entropy bonus.")


class Train(Section):
    """Steps, batch sizes, optimizer and schedule of training."""

    steps: AtLeastOne = Field(default=100, description="Rollouts to collect and learn from.")
    prompts_per_step: AtLeastOne = Field(default=8, description="Prompts per rollout, over all processes.")
    micro_batch: AtLeastOne = Field(
        default=64, description="Responses per forward pass; at least one whole group."
    )
    learning_rate: LearningRate = Field(default=1e-5, description="Peak learning rate of AdamW.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="Learning rate after the warm-up."
    )
    warmup_steps: Count = Field(default=0, description="Steps over which the learning rate rises from 0.")
    weight_decay: NotNegative = Field(default=0.0, description="AdamW's decay.")
    max_grad_norm: Positive = Field(default=1.0, description="Gradients are scaled down to this norm.")
    seed: Seed = Field(
        default=0, description="Seed of sampling, of the order of prompts and of initialisation."
    )
    gradient_checkpointing: Switch = Field(
        default=False, description="Recompute activations: less memory, slower."
    )
    mixed_precision: Literal["no", "bf16"] = Field(default="no", description="Autocast of forward passes.")
    evaluate_every: Count = Field(default=0, description="Evaluate after so many steps; 0: only at the end.")
    save_every: Count = Field(default=50, description="Checkpoint after so many steps; 0: only at the end.")
    keep_checkpoints: AtLeastOne = Field(default=2, description="Newest checkpoints to keep.")


class Limit(Section):
    """A limit of the collapse watch, and what happens beyond it."""

    limit: NotNegative | None = Field(default=None, description="The limit; null watches without one.")
    action: Literal["warn", "stop"] = Field(default="warn", description="What happens beyond the limit.")
    patience: AtLeastOne = Field(default=3, description="Steps in a row beyond the limit before it happens.")


class WatchSettings(Section):
    """Limits of the collapse watch."""

    length: Limit = Field(
        default=Limit(limit=3.0),
        description="Mean length over that of the first step: above limit or below 1/limit.",
    )
    repetition: Limit = Field(
        default=Limit(limit=0.5), description="Share of repeated trigrams: above limit."
    )
    kl: Limit = Field(
        default=Limit(limit=1.0), description="KL to the reference, nats per token: above limit."
    )
    entropy: Limit = Field(
        default=Limit(limit=0.1), description="Entropy over that of the first step: below limit."
    )
    shuffled: Limit = Field(
        default=Limit(limit=0.5),
        description="Share of responses that score under another prompt at least as high as under their own: "
        "above limit.",
    )

    shuffled_every: AtLeastOne = Field(default=10, description="Steps between two measurements of shuffled.")

    @model_validator(mode="before")
    @classmethod
    def _keep_default_limits(cls, data: Any) -> Any:
        # `length: {action: stop}` changes the action and keeps the limit, instead of switching it off.
        if not isinstance(data, dict):
            return data
        fields = cls.model_fields
        return {
            name: {"limit": fields[name].default.limit, **value}
            if name in fields and isinstance(fields[name].default, Limit) and isinstance(value, dict)
            else value
            for name, value in data.items()
        }


class Run(Section):
    """Where a run writes, and its trackers and limits."""

    directory: Place = Field(
        default="runs/train", description="Where the run writes; must be new, or resumed."
    )
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(
        default_factory=list,
        description="Dashboards that get the metrics, through Accelerate. One "
        "that fails is named and left out; the run goes on.",
    )
    log_candidates: Count = Field(
        default=2, description="Prompts per step whose candidates are written to candidates.jsonl."
    )
    max_seconds: Positive | None = Field(
        default=None,
        description="Save and stop, to be resumed, when the program has run so long; null: no limit (--max-time).",
    )


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
