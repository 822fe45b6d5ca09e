"""Training from prompts alone: `Trainer` takes objects, `train` a config; both end in a run directory."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from cagsr.config import Config, check_paths
from cagsr.config.schema import IN_MEMORY, Term
from cagsr.config.training_config import TrainingConfig
from cagsr.data.splits import DataSets
from cagsr.distributed.process_group import accelerated
from cagsr.errors import InputError
from cagsr.io.quiet_libraries import memory_named
from cagsr.io.terminal import say
from cagsr.models.build import model_digest
from cagsr.models.load import saved_form
from cagsr.models.load_policy import load_policy
from cagsr.models.lora import is_adapted
from cagsr.models.policy import Policy
from cagsr.rewards.presets import as_read, build_reward, possible, terms_of
from cagsr.rewards.reward import Reward
from cagsr.runs.identity import of_checker, of_start
from cagsr.runs.session import Claim
from cagsr.tasks.checkers import demand_checker, find_checker
from cagsr.tasks.task import Checker
from cagsr.training.assembly import assemble
from cagsr.training.callbacks import TransformersCallbacks
from cagsr.training.dashboards import check_trackers
from cagsr.training.hub import push_to_hub
from cagsr.training.loop import RunObserver, TrainingLoop
from cagsr.training.preflight import (
    check_launch,
    check_training,
)
from cagsr.training.progress import Display
from cagsr.training.step_warnings import StepWarnings
from cagsr.training.trainer_arguments import (
    checked_callbacks,
    checked_config,
    checked_model,
    checked_rows,
    refuse_settings_of_loading,
)

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = ["READ", "Trained", "Trainer", "train"]

# The sections of the config that training reads, and so what must be the same for a run to go on.
READ = ("model", "data", "sampling", "reward", "algorithm", "train", "watch")


@dataclass(frozen=True)
class Trained:
    """Result of a training; ``policy`` is None where the run had been finished before, so that nothing was loaded.

    outcome  {"steps", "best", "last", "seconds"}: what summary.json holds; ``best`` and ``last`` are evaluations.
    """

    policy: Policy | None
    outcome: dict[str, Any]


def train(
    config: Config | TrainingConfig | str | Path,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    accept_changes: bool = False,
    console: Console | None = None,
) -> Trained:
    """Train by a config: a `Config`, or a YAML file with dotted ``overrides`` ("train.steps=20") on top.

    This is `cagsr train`. ``resume`` goes on with the run of that directory, to the bit on a CPU; what is not as it
    was is refused by name, unless ``accept_changes`` says to go on with it. Raises InputError for what is wrong with
    the config, the disk or the data, where possible before the model is loaded.
    """
    if isinstance(config, str | Path):
        config = Config.load(config, overrides)
    elif overrides:
        raise InputError("train: overrides go with a YAML file; put them into the config that is given")
    return Trainer(args=config, console=console).run(resume=resume, accept_changes=accept_changes)


class Trainer:
    """Reinforcement learning of a language model whose reward is read from its own attention to the prompt.

    model             a directory, a hub name, or a model that is loaded already (it is then the one that is trained,
                      with the attention implementation of this package; float32, or an adapter); None: what ``args``
                      names.
    args              `TrainingConfig`, or a whole `Config`.
    train_dataset     rows with a column "prompt" (text, or messages with roles) or what ``data.prompt_column`` names: a
                      ``datasets.Dataset``, a list of dictionaries, ...; None: what ``args`` names. Of a stream
                      (``datasets.IterableDataset``) as many rows are read as the steps take prompts.
    eval_dataset      rows kept out of training: all are evaluated greedily every ``eval_steps`` and at the end; of a
                      stream the first ``data.evaluation_count``.
    processing_class  the tokenizer; only for a loaded model, and by default the one of its name.
    callbacks         transformers' ``TrainerCallback`` objects (`TransformersCallbacks` says what they are told), or
                      `RunObserver` ones.
    reward            a `Reward` or its terms, [Term("coverage"), ...]; None: the preset of ``args``.
    checker           what judges responses in evaluation, and is ``oracle`` as a signal; it never trains by itself.

    `train` writes metrics, candidates, checkpoints, the model and a report's data to ``output_dir``. A program that was
    killed or stopped goes on in a new process: the same Trainer, then ``train(resume_from_checkpoint=True)``.

    Raises InputError for arguments that cannot be used.
    """

    def __init__(
        self,
        model: "str | os.PathLike[str] | PreTrainedModel | PeftModel | None" = None,
        args: TrainingConfig | Config | None = None,
        train_dataset: Iterable[Mapping[str, Any]] | None = None,
        eval_dataset: Iterable[Mapping[str, Any]] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        callbacks: Sequence[TrainerCallback | RunObserver] = (),
        reward: Reward | Term | Sequence[Term] | None = None,
        checker: Checker | None = None,
        console: Console | None = None,
    ):
        self.console = console or Console()
        self.loaded, name = checked_model(model, processing_class)
        self.processing_class, self.checker = processing_class, checker
        self.callbacks = checked_callbacks(callbacks)
        if checker is not None:
            demand_checker("Trainer: checker", checker)
        keys: dict[str, Any] = {} if name is None else {"model.name": name}
        if train_dataset is not None:
            keys |= {"data.source": IN_MEMORY[0], "data.task": None}
        if eval_dataset is not None:
            keys["data.evaluation_source"] = IN_MEMORY[1]
            eval_dataset = list(eval_dataset) if isinstance(eval_dataset, Iterator) else eval_dataset
            if isinstance(eval_dataset, Sized):
                keys["data.evaluation_count"] = max(1, len(eval_dataset))
        if reward is not None:
            keys["reward.terms"] = list(terms_of(reward))
        self.config = checked_config(args, keys)
        trained = checked_rows("train_dataset", train_dataset, self.config.train.prompts_needed)
        evaluated = checked_rows("eval_dataset", eval_dataset, self.config.data.evaluation_count)
        self.datasets = DataSets(trained, evaluated)
        if self.loaded is not None:
            refuse_settings_of_loading(self.config)
        if trained is not None and evaluated is None and self.config.data.evaluation_split:
            raise InputError("Trainer: data.evaluation_split names a split of data.source; give eval_dataset")
        self.policy: Policy | None = None
        self.outcome: dict[str, Any] | None = None

    def train(self, resume_from_checkpoint: bool = False) -> dict[str, Any]:
        """Train to the last step; returns {"steps", "best", "last", "seconds"}, as summary.json holds it.

        Raises InputError for what cannot work, NumericsError before an optimizer step that is not finite, StorageError
        for a full disk, StoppedError once everything is saved after a signal or the time limit.
        """
        return self.run(resume=resume_from_checkpoint).outcome

    @property
    def model(self) -> PreTrainedModel:
        """The trained model; of a run that was finished before, the one in its directory. InputError before `train`."""
        if self.outcome is None:
            raise InputError("Trainer: nothing is trained yet; call train() first")
        if self.policy is None:  # the run had been finished before: its model is in the directory
            self.policy = load_policy(Path(self.config.run.directory) / "model", self.processing_class)
        return self.policy.model

    def push_to_hub(self, repo_id: str, *, private: bool = False) -> str:
        """Upload model/ of the run, with its card, to the hub; returns the URL. Raises InputError before `train`."""
        if self.outcome is None:
            raise InputError("push_to_hub: nothing is trained yet; call train() first")
        return push_to_hub(Path(self.config.run.directory) / "model", repo_id, private=private)

    def run(
        self,
        *,
        name: str = "train",
        resume: bool = False,
        accept_changes: bool = False,
        evaluate: bool = True,
    ) -> Trained:
        """`train`, as the commands call it; without ``evaluate`` nothing is evaluated and no best/ is kept."""
        # What a preset leaves to be read is a part of the run's config and identity; a choice is left until the base is
        # loaded (`evaluation.chosen_reward`), and is then kept beside them.
        self.config = config = as_read(self.config)
        console = self.console
        if self.policy is not None and self.loaded is not None:
            raise InputError(
                "Trainer: the model was trained in this process already, and the reference is the model before "
                "training; load it anew and give it to a new Trainer"
            )
        check_paths(config)
        check_trackers(config.run.trackers)
        checker = self.checker or find_checker(config.data)
        rewards = [build_reward(each.reward, checker) for each in possible(config)]
        for each, reward in zip(possible(config), rewards, strict=True):
            check_training(each, reward)
        accelerator = accelerated(mixed_precision=config.train.mixed_precision)
        check_launch(accelerator, "cagsr train", config)
        console.quiet = console.quiet or not accelerator.is_main_process
        known = None if self.loaded is None else model_digest(self.loaded, self.processing_class)
        claim = Claim(
            config.run.directory,
            config,
            of_start(config, READ, accelerator, [term for reward in rewards for term in reward.terms], known)
            | ({} if self.checker is None else of_checker(self.checker)),
            accelerator,
            resume=resume,
            accept_changes=accept_changes,
            console=console,
        )
        with claim, memory_named("train.micro_batch or sampling.max_new_tokens"):
            finished = claim.finished(config.train.steps)
            if finished is not None:
                say(console, f"{claim.directory} is finished (step {config.train.steps}); nothing to do.")
                self.outcome = finished
                return Trained(None, finished)
            return self._train(name, checker, claim, evaluate)

    def _train(self, name: str, checker: Checker | None, claim: Claim, evaluate: bool) -> Trained:
        console, steps = self.console, self.config.train.steps
        policy, loop, recorder = assemble(
            self.config,
            claim,
            console,
            loaded=self.loaded,
            tokenizer=self.processing_class,
            datasets=self.datasets,
            checker=checker,
            evaluate=evaluate,
            shows_prompt=name == "train",  # a comparison trains many times on the same prompts
        )
        say(console, f"{name}: {policy.readable}; reward {', '.join(loop.step.reward.names)}")
        if is_adapted(policy.model):
            say(console, f"model/ will be {saved_form(policy)}", style="dim")
        if not policy.sharing.possible:
            say(console, f"slower than it might be: {policy.sharing}", style="dim")
        say(console, f"every number of every step: {claim.directory}/metrics.jsonl", style="dim")
        self.policy = policy
        with Display(console, steps, name) as display:
            loop.observers = (recorder, display, *self._observers(loop))
            try:
                self.outcome = loop.run(resume=claim.resume)
                recorder.finish(self.outcome, len(loop.prompts))
                for observer in loop.observers:
                    if isinstance(observer, TransformersCallbacks):
                        observer.end()
            finally:
                recorder.dashboards.finish()
                claim.accelerator.end_training()
        return Trained(policy, self.outcome)

    def _observers(self, loop: TrainingLoop) -> list[RunObserver]:
        theirs = [one for one in self.callbacks if isinstance(one, TrainerCallback)]
        own: list[RunObserver] = [one for one in self.callbacks if not isinstance(one, TrainerCallback)]
        ours = [StepWarnings(self.console, self.config.sampling), *own]
        return [*ours, TransformersCallbacks(theirs, loop)] if theirs else ours
