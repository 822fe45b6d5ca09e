"""`cagsr train`: from a config to a trained model in a run directory."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from rich.console import Console

from cagsr.config import Config, check_paths
from cagsr.data import splits
from cagsr.data.readers import Row
from cagsr.data.row_messages import say_rows
from cagsr.distributed.process_group import accelerated
from cagsr.errors import InputError
from cagsr.evaluation.evaluator import Evaluator, measure_signals
from cagsr.io.atomic_write import write_atomically
from cagsr.io.quiet_libraries import memory_named, silence_libraries, warn
from cagsr.io.shutdown import Stops
from cagsr.io.terminal import say
from cagsr.models.build import build_policy, connect_engine
from cagsr.models.policy import Policy
from cagsr.models.vllm import Client
from cagsr.rewards.presets import build_reward
from cagsr.rewards.reward import Reward
from cagsr.rewards.salience import Salience, build_salience
from cagsr.runs.directory import fingerprint
from cagsr.runs.identity import of_data, of_loaded, of_start
from cagsr.runs.model_card import model_card
from cagsr.runs.session import Claim
from cagsr.tasks.checkers import find_checker
from cagsr.tasks.task import Checker
from cagsr.training.assembly import build_step
from cagsr.training.candidate_log import Shown
from cagsr.training.collapse_watch import CollapseWatch
from cagsr.training.loop import TrainingLoop
from cagsr.training.preflight import check_launch, check_training
from cagsr.training.progress import Display
from cagsr.training.step import Collected, Step
from cagsr.training.tracker_tables import show_candidates
from cagsr.types import Prompt

__all__ = ["Trained", "check_trackers", "run_training"]

# Of so many development prompts every evaluation keeps the responses, to be read before and after.
KEPT_RESPONSES = 24
READ = ("model", "data", "sampling", "reward", "algorithm", "train", "watch")


@dataclass(frozen=True)
class Trained:
    """``policy`` is None where the run had been finished before, so that nothing was loaded."""

    policy: Policy | None
    outcome: dict[str, Any]


def run_training(
    config: Config,
    console: Console,
    *,
    name: str = "train",
    resume: bool = False,
    accept_changes: bool = False,
    evaluate: bool = True,
) -> Trained:
    """Train as the config says; weights in ``model/`` and ``best/`` of the run directory, with a model card.

    Without ``evaluate`` nothing is measured on development prompts, so there is no ``best/``. ``resume`` goes on with
    the run of that directory, to the bit on a CPU; what is not as it was is refused by name, unless
    ``accept_changes`` says to go on with it.

    What can be wrong with the config, the disk and the data is found before the model is loaded where possible.
    """
    silence_libraries()
    check_paths(config)
    check_trackers(config.run.trackers)
    checker = find_checker(config.data)
    reward = build_reward(config.reward, checker)
    check_training(config, reward)
    accelerator = accelerated(
        mixed_precision=config.train.mixed_precision,
        log_with=list(config.run.trackers) or None,
        project_dir=config.run.directory,
    )
    check_launch(accelerator, "cagsr train", config)
    console.quiet = console.quiet or not accelerator.is_main_process
    identity = of_start(config, READ, accelerator, reward.terms)
    claim = Claim(
        config.run.directory,
        config,
        identity,
        accelerator,
        resume=resume,
        accept_changes=accept_changes,
        console=console,
    )
    with claim, memory_named("train.micro_batch or sampling.max_new_tokens"):
        finished = claim.finished(config.train.steps)
        if finished is not None:
            say(console, f"{claim.directory} is finished (step {config.train.steps}); nothing to do.")
            return Trained(None, finished)
        return _train(config, console, name, reward, checker, claim, evaluate)


def _train(
    config: Config,
    console: Console,
    name: str,
    reward: Reward,
    checker: Checker | None,
    claim: Claim,
    evaluate: bool,
) -> Trained:
    rows = splits.read_rows(config, "train")
    client = _engine(config, console, claim)
    policy = build_policy(config)
    prompts = _prompts(config, policy, "train", console, rows)
    salience = build_salience(config, prompts)
    _say_without_content(salience, prompts, console)
    step = build_step(config, policy, reward, salience, claim.accelerator, client)
    evaluator = _evaluator(config, policy, step, checker, console) if evaluate else None
    evaluated = of_data(evaluator.prompts, "evaluation data") if evaluator else {}
    claim.start(of_data(prompts) | evaluated | of_loaded(policy.commit))
    loop = TrainingLoop(
        step=step,
        prompts=prompts,
        schedule=config.train,
        watch=CollapseWatch(config.watch),
        directory=claim.directory,
        checkpoints=claim.checkpoints(config.train.keep_checkpoints, console),
        stops=Stops(config.run.max_seconds),
        identity=fingerprint([json.dumps(claim.identity, sort_keys=True)]),
        evaluate=evaluator,
    )
    shown = Shown.of_run(config.run.log_candidates, policy.tokenizer, salience, config.train.steps)
    recorder = Recorder(config, claim, shown, evaluator)
    say(console, f"{name}: {policy.readable}; reward {', '.join(reward.names)}")
    if not policy.sharing.possible:
        say(console, f"slower than it might be: {policy.sharing}", style="dim")
    say(console, f"every number of every step: {claim.directory}/metrics.jsonl", style="dim")
    with Display(console, config.train.steps, name) as display:
        loop.observers = (recorder, display)
        try:
            outcome = loop.run(resume=claim.resume)
            recorder.finish(outcome, len(prompts))
        finally:
            claim.accelerator.end_training()
    return Trained(policy, outcome)


def _engine(config: Config, console: Console, claim: Claim) -> Client | None:
    if config.sampling.engine == "vllm":
        server = config.sampling.vllm
        say(
            console,
            f"responses come from vLLM at {server.base_url}; waiting for it, {server.timeout:g} s at most",
        )
    return connect_engine(config, claim.accelerator)


class Recorder:
    """A trainer's observer that writes the run directory and the trackers, on the main process only."""

    def __init__(self, config: Config, claim: Claim, shown: Shown, evaluator: Evaluator | None):
        self.config, self.claim, self.run, self.directory = config, claim, claim.run, claim.directory
        self.accelerator, self.shown, self.evaluator = claim.accelerator, shown, evaluator

    def on_start(self, step: int | None) -> None:
        self.claim.rewind(step)
        if self.config.run.trackers:
            # A dashboard goes on where the run does: steps of the broken part are not shown twice.
            run = "" if self.run is None else self.run.id
            self.accelerator.init_trackers(
                "cagsr",
                config={"directory": str(self.directory)},
                init_kwargs={
                    "tensorboard": {"purge_step": (step or 0) + 1},
                    "wandb": {"id": run, "resume": "allow"},
                    "trackio": {"name": run, "resume": "allow"},
                },
            )

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
            assert self.evaluator is not None, "somebody evaluated"
            ends = {f"evaluation/{name}": value for name, value in self.evaluator.ends.items()}
            self.run.add_metrics(step, numbers | ends)
            self.run.add_evaluation(step, self.evaluator.rows[:KEPT_RESPONSES])

    def on_warning(self, step: int, message: str) -> None:
        if self.run is not None:
            self.run.add_metrics(step, {"warning": message})

    def finish(self, outcome: dict[str, Any], prompts: int) -> None:
        if self.run is None:
            return
        numbers = {"model": (outcome["last"] or [None])[-1], "best": outcome["best"]}
        for name, evaluation in numbers.items():
            if (self.directory / name).is_dir():
                card = model_card(self.config.model_dump(mode="json"), outcome["steps"], evaluation, prompts)
                write_atomically(self.directory / name / "README.md", card)
        # Last: it says that all the rest is there.
        self.run.write_summary(outcome)


def _prompts(
    config: Config, policy: Policy, split: str, console: Console, rows: Sequence[Row] | None = None
) -> list[Prompt]:
    prompts, report = splits.build_prompts(config, policy, split, rows=rows)
    say_rows(console, f"{split} prompts", report)
    return prompts


def _say_without_content(salience: Salience, prompts: Sequence[Prompt], console: Console) -> None:
    empty = salience.without_content(prompts)
    if empty:
        share = len(empty) / len(prompts)
        warn(
            console,
            f"{len(empty)} of {len(prompts)} prompts ({share:.0%}) have no content token, so no response can cover "
            "them",
        )


def _evaluator(
    config: Config, policy: Policy, step: Step, checker: Any, console: Console
) -> Evaluator | None:
    if not splits.has_evaluation_data(config):
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


def check_trackers(names: Sequence[str]) -> None:
    """Raises InputError for a dashboard whose package is missing."""
    for name in names:
        if find_spec(name) is None:
            raise InputError(f"run.trackers: {name} is not installed: pip install {name}")
