"""`cagsr train`: from a config to a trained model in a run directory."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from cagsr import build, checkpoint
from cagsr.candidates import Shown
from cagsr.card import model_card
from cagsr.commands import silence_libraries
from cagsr.config import Config, check_paths
from cagsr.dashboards import show_candidates
from cagsr.display import Display
from cagsr.errors import InputError, StoppedError
from cagsr.evaluation import Evaluator, measure_signals
from cagsr.policy.policy import Policy
from cagsr.records import RunDirectory, fingerprint, write_atomically
from cagsr.salience import Salience
from cagsr.step import Collected, Step
from cagsr.trainer import Schedule, Trainer
from cagsr.types import Prompt
from cagsr.watch import Limit, Watch

__all__ = ["Trained", "run_training"]


@dataclass(frozen=True)
class Trained:
    policy: Policy
    outcome: dict[str, Any]


def run_training(
    config: Config, console: Console, *, name: str = "train", resume: bool = False, evaluate: bool = True
) -> Trained:
    """Train as the config says; weights in ``model/`` and ``best/`` of the run directory, with a model card.

    Without ``evaluate`` nothing is measured on development prompts, so there is no ``best/``.

    What can be wrong with the config, the disk and the data is found before the model is loaded where possible.
    """
    silence_libraries()
    check_paths(config)
    _check_trackers(config.run.trackers)
    checker = build.build_checker(config)
    reward = build.build_reward(config, checker)
    build.check_training(config, reward)
    directory = Path(config.run.directory)
    accelerator = Accelerator(
        mixed_precision=config.train.mixed_precision,
        log_with=list(config.run.trackers) or None,
        project_dir=str(directory),
    )
    if not accelerator.is_main_process:
        console.quiet = True
    done = _steps_done(config, directory) if resume else 0
    if accelerator.is_main_process and not resume:
        RunDirectory.refuse_used(directory)
    policy = build.build_policy(config)
    prompts = _prompts(config, policy, "train", console)
    salience = build.build_salience(config, prompts)
    _say_without_content(salience, prompts, console)
    step = build.build_step(config, policy, reward, salience, accelerator)
    recorder = Recorder.open(
        config, directory, prompts, policy.tokenizer, salience, accelerator, resume, done
    )
    trainer = Trainer(
        step=step,
        prompts=prompts,
        schedule=_schedule(config),
        watch=_watch(config),
        directory=directory,
        evaluate=_evaluator(config, policy, step, checker, console) if evaluate else None,
    )
    recorder.evaluator = trainer.evaluate
    console.print(
        f"{name}: {policy.readable}; reward {', '.join(reward.names)}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    started = time.perf_counter()
    with Display(console, config.train.steps, name, first=done) as display:
        trainer.observers = (recorder, display)
        try:
            outcome = trainer.run(resume=resume)
        except StoppedError as error:
            recorder.stop(str(error))
            raise
    outcome["seconds"] = round(time.perf_counter() - started, 1)
    recorder.finish(config, outcome, len(prompts))
    return Trained(policy, outcome)


class Recorder:
    """A trainer's observer that writes the run directory and the trackers, on the main process only."""

    evaluator: Any = None  # whose intervals are kept beside its means

    def __init__(self, run: RunDirectory | None, accelerator: Accelerator, shown: Shown, processes: int):
        self.run, self.accelerator, self.shown, self.processes = run, accelerator, shown, processes

    @classmethod
    def open(
        cls,
        config: Config,
        directory: Path,
        prompts: Sequence[Prompt],
        tokenizer: PreTrainedTokenizerBase,
        salience: Salience,
        accelerator: Accelerator,
        resume: bool,
        done: int,
    ) -> "Recorder":
        run = None
        if accelerator.is_main_process:
            hashes = {"data": fingerprint(prompt.text for prompt in prompts)}
            if resume:
                run = RunDirectory.resume(directory, done)
                for changed in run.changed(hashes):
                    raise InputError(
                        f"{directory}: {changed} is not what this run started with; it cannot go on."
                    )
                write_atomically(directory / "config.yaml", config.as_yaml())
            else:
                run = RunDirectory.create(directory, config.as_yaml(), hashes)
        accelerator.wait_for_everyone()
        if config.run.trackers:
            accelerator.init_trackers("cagsr", config={"directory": str(directory)})
        shown = Shown.of_run(config.run.log_candidates, tokenizer, salience, config.train.steps)
        return cls(run, accelerator, shown, accelerator.num_processes)

    def on_step(self, step: int, row: dict[str, float], collected: Collected) -> None:
        self.accelerator.log(row, step=step)
        if self.run is not None:
            self.run.add_metrics(step, row)
            candidates = self.shown.rows(step, collected)
            self.run.add_candidates(step, candidates)
            if self.shown.in_full(step):
                show_candidates(self.accelerator.trackers, step, candidates)

    def on_evaluation(self, step: int, row: dict[str, float]) -> None:
        numbers = {f"evaluation/{name}": value for name, value in row.items() if name != "step"}
        self.accelerator.log(numbers, step=step)
        if self.run is not None:
            ends = self.evaluator.ends if self.evaluator else {}
            self.run.add_metrics(
                step, numbers | {f"evaluation/{name}": value for name, value in ends.items()}
            )

    def on_warning(self, step: int, message: str) -> None:
        if self.run is not None:
            self.run.add_metrics(step, {"warning": message})

    def stop(self, reason: str) -> None:
        """Keep why a run ended before its last step; going on with it replaces this."""
        if self.run is not None:
            self.run.write_summary({"stopped": reason})
        self.accelerator.end_training()

    def finish(self, config: Config, outcome: dict[str, Any], prompts: int) -> None:
        if self.run is not None:
            self.run.write_summary(outcome)
            numbers = {"model": (outcome["last"] or [None])[-1], "best": outcome["best"]}
            for name, evaluation in numbers.items():
                if (self.run.path / name).is_dir():
                    card = model_card(config.model_dump(mode="json"), outcome["steps"], evaluation, prompts)
                    write_atomically(self.run.path / name / "README.md", card)
        self.accelerator.end_training()


def _prompts(config: Config, policy: Policy, split: str, console: Console) -> list[Prompt]:
    prompts, report = build.build_prompts(config, policy, split)
    console.print(f"{split} prompts: {report}", highlight=False, markup=False, soft_wrap=True)
    return prompts


def _say_without_content(salience: Salience, prompts: Sequence[Prompt], console: Console) -> None:
    empty = salience.without_content(prompts)
    if empty:
        console.print(
            f"warning: {len(empty)} of {len(prompts)} prompts ({len(empty) / len(prompts):.0%}) have no content "
            "token, so no response can cover them",
            style="yellow",
            highlight=False,
        )


def _evaluator(
    config: Config, policy: Policy, step: Step, checker: Any, console: Console
) -> Evaluator | None:
    if not build.has_evaluation_data(config):
        return None
    return Evaluator(
        policy,
        _prompts(config, policy, "development", console),
        step.sampling,
        step.reward,
        measure_signals(step.reward, step.reference, step.salience),
        checker,
        step.world,
        config.train.micro_batch,
    )


def _schedule(config: Config) -> Schedule:
    training = config.train
    return Schedule(
        steps=training.steps,
        prompts_per_step=training.prompts_per_step,
        evaluate_every=training.evaluate_every,
        save_every=training.save_every,
        keep_checkpoints=training.keep_checkpoints,
        shuffled_every=config.watch.shuffled_every,
        seed=training.seed,
    )


def _watch(config: Config) -> Watch:
    names = ("length", "repetition", "kl", "entropy", "shuffled")
    limits = {name: getattr(config.watch, name) for name in names}
    return Watch({name: Limit(given.limit, given.action, given.patience) for name, given in limits.items()})


def _steps_done(config: Config, directory: Path) -> int:
    """Steps of the newest checkpoint, 0 without one. Raises InputError when that is beyond train.steps."""
    newest = checkpoint.newest(directory / "checkpoints")
    done = 0 if newest is None else int(newest.name.removeprefix("step-"))
    if done > config.train.steps:
        raise InputError(
            f"train.steps ({config.train.steps}): {directory} is at step {done} already. Set more steps to go on."
        )
    return done


def _check_trackers(names: Sequence[str]) -> None:
    for name in names:
        if find_spec(name) is None:
            raise InputError(f"run.trackers: {name} is not installed: pip install {name}")
