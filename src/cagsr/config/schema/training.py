"""The sections `algorithm`, `train`, `watch` and `run`: the update, the loop, its limits, its directory."""

from typing import Any, Literal

from pydantic import Field, model_validator

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
)
from cagsr.config.registry import ESTIMATORS

__all__ = ["AlgorithmSettings", "Limit", "Loss", "Run", "Train", "WatchSettings"]


class Loss(Section):
    """The policy loss and its options."""

    name: Text = Field(
        default="clipped", description="Name of a policy loss, or dotted path of a function of your own."
    )
    options: dict[str, Scalar | list[Scalar]] = Field(
        default_factory=dict,
        description="Keyword arguments of the loss. clipped: clip (0.2), the furthest that the probability ratio may "
        "move from 1 in one rollout, and clip_high (as clip), the furthest upwards. cispo: largest (5), the largest "
        "ratio that weighs. gspo: clip (3e-4) and clip_high (4e-4), of the ratio of a response.",
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
    kl_estimate: Literal["k2", "k3"] = Field(
        default="k2",
        description="Estimate of the KL in the loss. k2 pulls towards the reference; k3, which TRL and GRPO have, "
        "has the gradient of the other direction, KL(reference || policy).",
    )
    loss: Loss = Field(default_factory=Loss, description="The policy loss of each token.")
    value_clip: Positive = Field(default=0.2, description="Furthest a value may move in one rollout (ppo).")
    value_coefficient: NotNegative = Field(default=0.1, description="Weight of the value loss (ppo).")
    gamma: Share = Field(default=1.0, description="Discount per token (ppo).")
    gae_lambda: Share = Field(
        default=1.0,
        description="Lambda of generalised advantage estimation (ppo). Below 1 the reward, which is of the whole "
        "response, reaches its first tokens only as far as the critic has learnt to foresee it.",
    )
    value_baseline: Literal["group", "none"] = Field(
        default="group",
        description="What the critic starts from (ppo). group: the mean reward of a prompt's other candidates, so "
        "that it learns only how a response differs from them; none, and with one candidate: 0.",
    )
    loss_normalisation: Literal["auto", "token", "sequence", "constant"] = Field(
        default="auto",
        description="Divide by all tokens, by each response's length, or by max_new_tokens; auto: by max_new_tokens "
        "for dr-grpo, by all tokens otherwise.",
    )
    epochs: AtLeastOne = Field(default=1, description="Passes over each rollout.")
    minibatches: AtLeastOne = Field(
        default=1, description="Optimizer steps per pass; divides prompts_per_step."
    )
    entropy_coefficient: NotNegative = Field(default=0.0, description="Weight of an entropy bonus.")
    importance: Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] = Field(
        default="token_truncate",
        description="How tokens that vLLM drew count: by the ratio of the policy's probability to vLLM's, of each "
        "token or of the whole response, which is cut at importance_limit or counts nothing above it.",
    )
    importance_limit: Positive = Field(default=2.0, description="Largest such ratio.")

    @property
    def kl_in_reward(self) -> bool:
        """Whether the KL is charged in the reward of every token; otherwise in the loss."""
        return self.kl_placement == "reward" or (self.kl_placement == "auto" and self.name == "ppo")


class Train(Section):
    """Steps, batch sizes, optimizer and schedule of training."""

    steps: AtLeastOne = Field(default=100, description="Rollouts to collect and learn from.")
    prompts_per_step: AtLeastOne = Field(default=8, description="Prompts per rollout, over all processes.")
    replacements: Count = Field(
        default=0,
        description="Most rounds of sampling other prompts in place of those whose candidates all have the same "
        "reward (dynamic sampling); 0: never. A round costs as much as the step's own responses and their reward did, "
        "and where a prompt gave way that reward once more.",
    )
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
    gather_for_rollouts: Switch = Field(
        default=True,
        description="Under FSDP2 every process holds the whole model while it samples and scores. False: a block at a "
        "time, for a model that fits into no process; slower, every token gathers all weights.",
    )
    mixed_precision: Literal["no", "bf16"] = Field(default="no", description="Autocast of forward passes.")
    evaluate_every: Count = Field(default=0, description="Evaluate after so many steps; 0: only at the end.")
    save_every: Count = Field(default=50, description="Checkpoint after so many steps; 0: only at the end.")
    keep_checkpoints: AtLeastOne = Field(default=2, description="Newest checkpoints to keep.")

    @property
    def prompts_needed(self) -> int:
        """As many prompts as all steps take, replacements included: so much is read of a stream."""
        return self.steps * self.prompts_per_step * (1 + self.replacements)


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
