"""Attention rewards inside TRL: a reward function for ``GRPOTrainer`` and ``RLOOTrainer``."""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cagsr.config.schema import Term
from cagsr.data.in_memory import encode_in_memory
from cagsr.errors import InputError
from cagsr.evaluation.score import (
    chosen_reward,
    encode_responses,
    measured,
    only_one,
    refuse_overlong,
    was_finished,
)
from cagsr.models.observing import frozen_policy
from cagsr.rewards.reward import Reward
from cagsr.rewards.salience import Salience, Uniform
from cagsr.types import Prompt, Scores

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = ["AttentionReward"]


class AttentionReward:
    """A reward read from the attention of a frozen observer: ``GRPOTrainer(reward_funcs=AttentionReward(model), ...)``.

    model             who observes, as it is now: a directory or hub name, a transformers model (copied; give it before
                      the trainer gets it), or a PEFT model (its base with the adapter off; frozen weights are shared
                      and not copied).
    processing_class  its tokenizer, which must be the trainer's; None: the one that lies where the model was loaded.
    preset            name or YAML file of a preset (``robust`` stands for ``knockout``: no base is sampled here);
                      ``reward``, a `Reward` or its terms, takes its place.
    salience          which prompt tokens are to be covered; None: all content words alike.
    batch_size        completions in one pass of the observer.
    chat_template_kwargs  None: those of the trainer that asks, or none where nobody can be asked.
    layers, temperature, revision, dtype, trust_remote_code   as of `cagsr.load_policy`.

    Prompts are read as the trainer that asks reads them: rendered by its tokenizer and chat template, with its tools
    and ``chat_template_kwargs``, and always with the generation prompt. TRL's trainers render all prompts alike,
    whatever their columns ``tools`` and ``chat_template_kwargs`` say, and take a special token that a prompt spells for
    that token. Where no trainer asks, the columns win, and what is spelt is text. Completions are read as the tokens
    that were sampled (``completion_ids``); one whose last token ends no sequence is unfinished.

    Completions of equal prompts are a group, and a term that is standardised ``group`` compares them; ``batch`` means
    all that one call brings. Each process calls for its own completions alone: where a group is split among processes,
    each part is compared within itself, and a warning says so. It is never split where ``per_device_train_batch_size *
    steps_per_generation`` is a multiple of ``num_generations``; a reward of raw terms (``knockout``) is not concerned.

    The trainer logs the mean of every signal as ``NAME/SIGNAL``, and with ``log_completions`` each value in the table.
    NAME is ``__name__``, "attention_" and the preset unless you set another. ``observer`` is the `Policy` that reads;
    it moves to the device of the trainer that asks.

    Raises InputError for what cannot be read exactly as it was sampled: images, environments, completions of several
    turns, another tokenizer. Raises UnsupportedModelError for a model whose attention cannot be read exactly.
    """

    def __init__(
        self,
        model: "str | os.PathLike[str] | PreTrainedModel | PeftModel",
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        preset: str | Path = "coverage",
        reward: Reward | Sequence[Term] | None = None,
        salience: Salience | None = None,
        batch_size: int = 16,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        layers: str | list[int] = "all",
        temperature: float = 1.0,
        revision: str | None = None,
        dtype: str = "float32",
        trust_remote_code: bool = False,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size: {batch_size} is too small; give a number of at least 1")
        self.__name__ = f"attention_{Path(preset).stem if reward is None else 'reward'}"
        self.reward = chosen_reward(preset, reward)
        self.salience, self.batch_size = salience or Uniform(), batch_size
        self.chat_template_kwargs = chat_template_kwargs
        self.observer = frozen_policy(
            model,
            processing_class,
            layers=layers,
            temperature=temperature,
            revision=revision,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
        )
        self._met: Any = None
        self._said: set[str] = set()

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        *,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list], None] | None = None,
        **columns: Any,
    ) -> list[float]:
        """The N rewards of N completions; TRL's own arguments. See `scores`."""
        trainer = _trainer_of(log_metric)
        found = self._scores(prompts, completions, completion_ids, trainer, columns)
        for name, values in zip(found.names, found.signals.unbind(-1), strict=True):
            if log_metric is not None:
                log_metric(f"{self.__name__}/{name}", float(values.mean()))
            if log_extra is not None:
                log_extra(f"{self.__name__}/{name}", values.tolist())
        return found.reward.tolist()

    def scores(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> Scores:
        """The single signals [N C] beside the reward [N].

        prompts, completions  texts, or conversations and the one turn that answers each.
        completion_ids        what was sampled; None: the completions' texts, each taken as finished unless a column
                              ``finished`` or ``truncated`` says that it was cut off.
        columns               further data of each prompt, N values by name, for signals and saliences that read rows.
        """
        return self._scores(prompts, completions, completion_ids, None, columns)

    def _scores(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None,
        trainer: Any,
        columns: Mapping[str, Any],
    ) -> Scores:
        _refuse_unreadable(columns)
        texts = [
            _text_of(n, completion, completion_ids is not None) for n, completion in enumerate(completions)
        ]
        if not len(prompts) == len(texts) == len(texts if completion_ids is None else completion_ids):
            raise InputError(
                "completions: expected one, and one list of completion_ids, for each of the prompts"
            )
        tokenizer, template = self._rendering(trainer)
        rows = {name: values for name, values in columns.items() if _is_column(values, len(texts))}
        settings = {"template": template, "goes_on": self.observer.readable.kind == "causal"}
        encoded = encode_in_memory(
            prompts, tokenizer, columns=rows, verbatim=trainer is not None, warn=self._warn, **settings
        )
        if completion_ids is None:
            try:
                ended = [was_finished(prompt.row) for prompt in encoded]
            except ValueError as error:
                raise InputError(f"columns: {error}; rename it if it says something else") from error
            ids, written = encode_responses(self.observer, encoded, texts, ended), texts
        else:
            ids, written = [self._sampled(n, row) for n, row in enumerate(completion_ids)], None
        refuse_overlong(self.observer, encoded, ids)
        self._warn(only_one(self.reward, encoded))
        self._warn(_split(self.reward, encoded, trainer))
        settings = {"batch_size": self.batch_size, "responses": written}
        return measured(self.observer, encoded, ids, self.reward, self.salience, **settings)

    def _rendering(self, trainer: Any) -> tuple[PreTrainedTokenizerBase, dict[str, Any]]:
        """The tokenizer and the options of ``apply_chat_template`` that prompts are read with."""
        own = self.chat_template_kwargs
        template = {"add_generation_prompt": True, "continue_final_message": False}
        if trainer is None:
            return self.observer.tokenizer, {**template, **(own or {})}
        theirs = trainer.chat_template_kwargs or {}
        if own is not None and dict(own) != dict(theirs):
            raise InputError(
                f"chat_template_kwargs: {dict(own)} here, and {dict(theirs)} in the trainer; leave them out here, or "
                "set both alike"
            )
        self._meet(trainer)
        for name in ("tools", "chat_template"):
            if getattr(trainer, name, None):
                template[name] = getattr(trainer, name)
        return trainer.processing_class, {**template, **theirs}

    def _meet(self, trainer: Any) -> None:
        """Go to the trainer's device, learn its end tokens, and refuse one whose tokens mean something else."""
        self.observer.to(trainer.accelerator.device)
        if trainer is self._met:
            return
        tokenizer = trainer.processing_class
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise InputError(
                f"processing_class: the trainer has a {type(tokenizer).__name__}, and images are not read; give it a "
                "tokenizer"
            )
        if tokenizer.get_vocab() != self.observer.tokenizer.get_vocab():
            raise InputError(
                "processing_class: the trainer's tokenizer and the observer's give tokens other numbers; give "
                "AttentionReward the model and the tokenizer of the trainer"
            )
        ends = [*self.observer.eos_ids, *trainer.eos_token_ids]
        self.observer.eos_ids = list(dict.fromkeys(ends))
        if getattr(trainer, "rollout_func", None) is not None:
            self._warn(
                "the trainer's rollout_func is taken to tokenise prompts as the trainer does, and to return what the "
                "model wrote and nothing else"
            )
        self._met = trainer

    def _sampled(self, n: int, row: Sequence[int]) -> list[int]:
        """One row of completion_ids. Raises InputError for what the observer cannot have sampled."""
        ids = [int(token) for token in row]
        known = len(self.observer.tokenizer)
        if not ids or min(ids) < 0 or max(ids) >= known:
            raise InputError(
                f"completion_ids[{n}]: expected at least one token, each below the tokenizer's {known}, got {ids!r:.60}"
            )
        return ids

    def _warn(self, message: str | None) -> None:
        """Warn, of each thing once: a training run calls thousands of times."""
        kind = (message or "")[:20]
        if message is not None and kind not in self._said:
            self._said.add(kind)
            warnings.warn(message, UserWarning, stacklevel=4)


def _trainer_of(log_metric: Any) -> Any:
    """The TRL trainer whose method this is: it says how it renders prompts. None where it is something else."""
    trainer = getattr(log_metric, "__self__", None)
    told = ("accelerator", "chat_template_kwargs", "eos_token_ids", "num_generations", "processing_class")
    return trainer if all(hasattr(trainer, name) for name in told) else None


def _refuse_unreadable(columns: Mapping[str, Any]) -> None:
    for name in ("image", "images"):
        if any(value not in (None, []) for value in columns.get(name) or ()):
            raise InputError(f"{name}: images are not read; train on text, or with a reward of another kind")
    if columns.get("environments") is not None:
        raise InputError(
            "environments: they write a part of each completion, which is not read; leave environment_factory out"
        )


def _text_of(n: int, completion: Any, has_ids: bool) -> str:
    """The text of a completion. Raises InputError for one of several turns, and without ids for one without text."""
    if isinstance(completion, str):
        return completion
    turns = completion if isinstance(completion, Sequence) else [completion]
    if len(turns) != 1 or not isinstance(turns[0], Mapping) or turns[0].get("role") != "assistant":
        raise InputError(
            f"completions[{n}]: expected a text or one turn of the assistant, got {completion!r:.80}; leave out tools "
            "and whatever else writes between its turns"
        )
    content = turns[0].get("content")
    if not has_ids and not isinstance(content, str):
        raise InputError(f"completions[{n}]: the content must be text, got {type(content).__name__}")
    return str(content)


def _is_column(values: Any, rows: int) -> bool:
    return isinstance(values, Sequence) and not isinstance(values, str) and len(values) == rows


def _split(reward: Reward, prompts: Sequence[Prompt], trainer: Any) -> str | None:
    """What to say where this process holds only a part of a group that a term compares; None: nothing."""
    terms = [term.signal for term in reward.terms if term.standardise == "group"]
    if trainer is None or not terms:
        return None
    size = trainer.num_generations if trainer.model.training else trainer.num_generations_eval
    if all(count % size == 0 for count in Counter(prompt.text for prompt in prompts).values()):
        return None
    return (
        f"num_generations: groups of {size} are split among processes, so that {', '.join(terms)} is compared within "
        "each part alone; set per_device_train_batch_size * steps_per_generation to a multiple of num_generations"
    )
