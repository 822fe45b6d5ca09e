"""TrainingConfig: the settings of a run by the names that transformers and TRL use, for `cagsr.Trainer`."""

import os
from collections.abc import Mapping
from typing import Any

from pydantic import Field, SkipValidation

from cagsr.config.fields import Section
from cagsr.config.loading import Config
from cagsr.errors import InputError, closest

__all__ = ["TrainingConfig"]


def _key(key: str) -> Any:
    """A field that stands for the config's ``key`` and takes its default and its description from there."""
    section, _, name = key.partition(".")
    field = Config.model_fields[section].get_default(call_default_factory=True).__class__.model_fields[name]
    default = field.get_default(call_default_factory=True)
    return Field(default=default, description=f"{field.description} ({key})", json_schema_extra={"key": key})


def _others(section: str) -> Any:
    """A field for the keys of a section that have no field of their own."""
    return Field(default_factory=dict, description=f"Other keys of the section {section}.")


# What TRL's GRPOConfig has and this has under another name or in another unit.
MENDS = {
    "per_device_train_batch_size": "it counts completions; set prompts_per_step, and micro_batch for what fits at once",
    "per_device_eval_batch_size": "set micro_batch",
    "gradient_accumulation_steps": "a step is split into passes of micro_batch responses by itself",
    "num_train_epochs": "set max_steps; an epoch is the number of prompts / prompts_per_step",
    "epsilon": "set loss={'name': 'clipped', 'options': {'clip': 0.2}}",
    "epsilon_high": "set loss={'name': 'clipped', 'options': {'clip_high': 0.28}}",
    "importance_sampling_level": "set loss='gspo' for a ratio of whole responses",
    "vllm_importance_sampling_mode": "set algorithm={'importance': 'sequence_mask'}, with TRL's names",
    "vllm_importance_sampling_clip_max": "set algorithm={'importance_limit': 3.0}",
    "max_length": "set max_prompt_length and max_completion_length",
    "logging_steps": "every step is logged",
    "reward_weights": "give Trainer(reward=[Term('coverage', weight=1.0), ...])",
    "use_vllm": "set sampling={'engine': 'vllm'}",
    "bf16": "set mixed_precision='bf16'",
    "fp16": "set mixed_precision='bf16', or leave it out for float32",
    "eval_strategy": "set eval_steps; 0 evaluates at the end alone",
    "save_strategy": "set save_steps; 0 saves at the end alone",
    "warmup_ratio": "set warmup_steps",
    "loss_type": "set loss='clipped', 'cispo' or 'gspo', algorithm='dr-grpo', or algorithm={'loss_normalisation': "
    "'token'}, 'sequence' or 'constant'",
    "scale_rewards": "set algorithm='dr-grpo' for a reward that is not divided by the group's deviation",
    "push_to_hub": "call trainer.push_to_hub(repo_id) after training",
    "remove_unused_columns": "columns are kept; rewards and checkers may read them",
}


def _as_key(name: str, value: Any) -> Any:
    """The value of a flat name as its key takes it: transformers writes one tracker as a text, and a path as such."""
    if name == "report_to" and isinstance(value, str):
        return [] if value == "none" else [value]
    if name == "loss" and isinstance(value, str):
        return {"name": value}
    return os.fspath(value) if isinstance(value, os.PathLike) else value


class TrainingConfig(Section):
    """The settings of a run, flat, with the names of transformers and TRL where they have one.

    ``algorithm`` is a name ("grpo", "dr-grpo", "ppo", "rloo", "policy-gradient"), or the keys of that section.

    Each field stands for a key of `cagsr.Config`, whose meaning, range and default it has (``cagsr reference`` prints
    them all). What has no field of its own is given by section, ``TrainingConfig(watch={"kl": {"limit": 0.5}})``; a
    flat field wins over its section. Raises InputError, a line for each mistake, with the name that was meant.
    """

    output_dir: SkipValidation[str | os.PathLike[str]] = _key("run.directory")
    max_steps: SkipValidation[int] = _key("train.steps")
    prompts_per_step: SkipValidation[int] = _key("train.prompts_per_step")
    micro_batch: SkipValidation[int] = _key("train.micro_batch")
    learning_rate: SkipValidation[float] = _key("train.learning_rate")
    lr_scheduler_type: SkipValidation[str] = _key("train.schedule")
    warmup_steps: SkipValidation[int] = _key("train.warmup_steps")
    weight_decay: SkipValidation[float] = _key("train.weight_decay")
    max_grad_norm: SkipValidation[float] = _key("train.max_grad_norm")
    gradient_checkpointing: SkipValidation[bool] = _key("train.gradient_checkpointing")
    mixed_precision: SkipValidation[str] = _key("train.mixed_precision")
    seed: SkipValidation[int] = _key("train.seed")
    eval_steps: SkipValidation[int] = _key("train.evaluate_every")
    save_steps: SkipValidation[int] = _key("train.save_every")
    save_total_limit: SkipValidation[int] = _key("train.keep_checkpoints")
    report_to: SkipValidation[str | list[str]] = _key("run.trackers")
    max_seconds: SkipValidation[float | None] = _key("run.max_seconds")
    num_generations: SkipValidation[int] = _key("sampling.candidates")
    temperature: SkipValidation[float] = _key("sampling.temperature")
    top_p: SkipValidation[float] = _key("sampling.top_p")
    top_k: SkipValidation[int] = _key("sampling.top_k")
    max_completion_length: SkipValidation[int] = _key("sampling.max_new_tokens")
    max_prompt_length: SkipValidation[int | None] = _key("data.max_prompt_tokens")
    chat_template_kwargs: SkipValidation[Mapping[str, Any]] = _key("data.chat_template_kwargs")
    algorithm: SkipValidation[str | Mapping[str, Any]] = _key("algorithm.name")
    loss: SkipValidation[str | Mapping[str, Any]] = _key("algorithm.loss")
    beta: SkipValidation[float] = _key("algorithm.kl_coefficient")
    num_iterations: SkipValidation[int] = _key("algorithm.epochs")
    preset: SkipValidation[str] = _key("reward.preset")
    observer: SkipValidation[str] = _key("reward.observer")
    layers: SkipValidation[str | list[int]] = _key("reward.layers")
    lora: SkipValidation[Mapping[str, Any] | None] = _key("model.lora")
    model: SkipValidation[Mapping[str, Any]] = _others("model")
    data: SkipValidation[Mapping[str, Any]] = _others("data")
    sampling: SkipValidation[Mapping[str, Any]] = _others("sampling")
    reward: SkipValidation[Mapping[str, Any]] = _others("reward")
    watch: SkipValidation[Mapping[str, Any]] = _others("watch")
    train: SkipValidation[Mapping[str, Any]] = _others("train")
    run: SkipValidation[Mapping[str, Any]] = _others("run")

    def __init__(self, **given: Any) -> None:
        for name in given:
            if name in MENDS:
                raise InputError(f"TrainingConfig: {name}: {MENDS[name]}")
            if name not in type(self).model_fields:
                raise InputError(
                    f"TrainingConfig: unknown name {name!r}{closest(name, type(self).model_fields)}"
                )
        super().__init__(**given)

    def as_config(self, keys: Mapping[str, Any]) -> Config:
        """The `Config` of these settings, with dotted ``keys`` on top: ``{"model.name": "gpt2"}``.

        Raises InputError, a line for each mistake.
        """
        sections: dict[str, dict[str, Any]] = {}
        flat: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            if name not in self.model_fields_set:
                continue
            extra, value = field.json_schema_extra, getattr(self, name)
            if isinstance(extra, Mapping) and not (name == "algorithm" and isinstance(value, Mapping)):
                flat[str(extra["key"])] = _as_key(name, value)
            elif not isinstance(value, Mapping):
                raise InputError(
                    f"TrainingConfig: {name} is a section; give a mapping of its keys, got {value!r:.60}"
                )
            else:
                sections[name] = dict(value)
        for key, value in {**flat, **keys}.items():
            section, _, name = key.partition(".")
            sections.setdefault(section, {})[name] = value
        return Config.checked(sections, "TrainingConfig:")
