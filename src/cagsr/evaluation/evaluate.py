"""`cagsr eval`: models side by side on held-out prompts, with paired intervals."""

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from cagsr.config import Config
from cagsr.config.schema import Sampling
from cagsr.data import splits
from cagsr.data.in_memory import is_conversation
from cagsr.data.row_messages import say_few, say_not_measured, say_rows
from cagsr.distributed.launcher import refuse_unseen
from cagsr.distributed.process_group import World, accelerated
from cagsr.errors import InputError, StorageError
from cagsr.evaluation import metrics_from_config as instruments
from cagsr.evaluation.chosen_reward import choose_reward
from cagsr.evaluation.evaluator import Answers, answer, measure_signals, read_by, spread_of
from cagsr.evaluation.learnt_heads import HEADS
from cagsr.evaluation.scoreboard import Scoreboard, on_common_prompts, preference_summary
from cagsr.io.adapters import identity_with_base
from cagsr.io.places import expanded
from cagsr.io.template_date import moment, pinned_date
from cagsr.io.terminal import say
from cagsr.metrics.bootstrap import summarise
from cagsr.models.build import build_policy, check_sampling
from cagsr.models.policy import Policy
from cagsr.rewards.presets import build_reward, possible
from cagsr.runs.directory import RunDirectory
from cagsr.runs.identity import of_model
from cagsr.tasks.bases import base_name
from cagsr.tasks.checkers import find_checker
from cagsr.tasks.task import Checker
from cagsr.types import Prompt, Rollout

__all__ = ["evaluate", "named_models", "split_arguments"]


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Models and overrides. Only ``SECTION.KEY=VALUE`` is an override: a model's name may have dots as well."""
    overrides = [
        argument
        for argument in arguments
        if "=" in argument
        and "." in argument.partition("=")[0]
        and argument.partition(".")[0] in Config.model_fields
    ]
    return [argument for argument in arguments if argument not in overrides], overrides


def named_models(arguments: Sequence[str]) -> dict[str, str]:
    """``NAME=PATH`` or ``PATH`` each; a path's own name is used where it is not ``model`` or ``best``."""
    found: dict[str, str] = {}
    for argument in arguments:
        name, separator, path = argument.partition("=")
        if not separator:
            path, parts = argument, Path(argument).absolute().parts
            name = parts[-2] if parts[-1] in ("model", "best") else parts[-1]
        path = expanded(path)
        if name in found:
            raise InputError(f"two models are called {name!r}; name them: NAME=PATH")
        found[name] = path
    return found


@pinned_date()
def evaluate(
    config: Config, models: dict[str, str], split: str, greedy: bool, console: Console
) -> dict[str, Any]:
    """Every model on the same prompts; differences of each to the first. The shape is that of the demo's summary.

    Greedy by default; otherwise the mean over K samples of each prompt, at the config's sampling. Without labels:
    ``reward`` relative to the first model, each of its signals, ``finished``, ``repeated_trigrams``, ``length`` in
    the model's own tokens; and the slot metrics where there is a checker. The first model's attention judges the
    responses of all. What ``metrics`` asks for comes on top; a judge and people speak of a prompt's first response. A
    judge that fails costs its own metric alone: ``measured_by.not_measured.judge`` says why. ``train`` takes the first
    ``data.evaluation_count`` prompts that were trained on. Raises InputError where no prompt fits all models.
    """
    started = time.perf_counter()
    if split != "train":
        splits.check_evaluation_data(config)
    instruments.check_metrics(config)
    world = World(accelerated())
    refuse_unseen(world.size)
    console.quiet = world.rank > 0
    if splits.chose_best(config, split):
        say(console, f"{split} prompts: also used to choose best/, so its numbers are a little too good")
    decoding = config.sampling.greedy() if greedy else config.sampling
    asked, answers, observer, scoreboard = _answered(config, models, split, decoding, world, console)
    common = asked[list(asked)[-1]]
    say_few(console, len(common))
    values, responses = _on_common(asked, answers, common, observer, scoreboard)
    first, *others = values
    # Once, not by every process: each question to a judge has its price.
    said = _opinions(config, scoreboard, common, responses) if world.rank == 0 else {}
    say_not_measured(console, scoreboard.describe())
    for name, opinions in said.pop("values", {}).items():
        values[name] |= opinions
    return {
        "task": config.data.name,
        "seed": config.train.seed,
        "split": split,
        "decoding": "greedy" if greedy else f"{decoding.candidates} samples a prompt",
        "prompts": len(common),
        **_dated(common),
        "models": {name: identity_with_base(path, config.model.revision) for name, path in models.items()},
        "seconds": round(time.perf_counter() - started, 1),
        **summarise(values, [(other, first) for other in others]),
        "measured_by": scoreboard.describe(),
        **said,
    }


def _dated(prompts: Sequence[Prompt]) -> dict[str, str]:
    """What chat templates took for now, where there are any: another day may give another prompt."""
    conversations = any(is_conversation(prompt.row.get("prompt", "")) for prompt in prompts)
    return {"template_date": moment()} if conversations else {}


def _answered(
    config: Config, models: dict[str, str], split: str, decoding: Sampling, world: World, console: Console
) -> tuple[dict[str, list[Prompt]], dict[str, Answers], "SharedObserver", Scoreboard]:
    """Of every model the prompts that all so far could read, and its answers; the first one judges them all."""
    asked: dict[str, list[Prompt]] = {}
    answers: dict[str, Answers] = {}
    observer = scoreboard = None
    checker = find_checker(config.data)
    for each in possible(config):
        build_reward(each.reward, checker)  # what is wrong with it is found before a model is loaded
    rows = splits.read_rows(config, split)
    instruments.check_rows(config, rows)
    for name, path in models.items():
        alone = config.replaced({"model.name": path, "model.lora": None})  # nothing is trained here
        policy = build_policy(alone)
        check_sampling(policy, console)
        policy.to(world.device)
        prompts, report = splits.build_prompts(config, policy, split, rows=rows)
        say_rows(console, f"{name}, {split} prompts", report)
        prompts = splits.evenly(prompts, config.data.evaluation_count)
        if observer is None:
            kept = heads_of_a_run(config, path, models.values())
            observer = SharedObserver(alone, policy, prompts, checker, world, console, kept)
            reward = f"{observer.named}, as {name} reads it: {', '.join(observer.reward.names)}"
            say(console, f"the reward that is measured is {reward}")
            scoreboard = instruments.build_scoreboard(alone, policy, checker, split)
        prompts = _shared(prompts, asked, name)
        asked[name] = prompts
        with console.status(f"{name} answers {len(prompts)} prompts"):
            answers[name] = answer(
                policy,
                prompts,
                decoding,
                world=world,
                prompts_per_pass=max(1, config.train.micro_batch // decoding.candidates),
                seed=config.train.seed,
                measure=observer.measures(policy),
            )
    assert observer is not None, "at least one model"
    assert scoreboard is not None
    return asked, answers, observer, scoreboard


def _on_common(
    asked: dict[str, list[Prompt]],
    answers: dict[str, Answers],
    common: list[Prompt],
    observer: "SharedObserver",
    scoreboard: Scoreboard,
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, list[str]]]:
    """Metrics and first responses of every model on the ``common`` prompts; the first one's reward has mean 0."""
    values, responses = {}, {}
    for name, prompts in asked.items():
        measured = scoreboard.values(prompts, answers[name]) | observer.values(answers[name])
        kept = np.isin([prompt.index for prompt in prompts], [prompt.index for prompt in common])
        values[name] = {metric: array[kept] for metric, array in measured.items()}
        responses[name] = [answers[name].responses[row][0] for row in np.flatnonzero(kept)]
    base = next(iter(values.values()))["reward"].mean()
    for metrics in values.values():
        metrics["reward"] = metrics["reward"] - base
    return values, responses


def _opinions(
    config: Config, scoreboard: Scoreboard, prompts: list[Prompt], responses: dict[str, list[str]]
) -> dict[str, Any]:
    """``values`` of what a judge and people said, on the prompts where they said it of every system; ``opinions``,
    the counts; and ``preferences`` of each system against the first. Empty where nobody was asked.
    """
    given = {name: scoreboard.opinions(name, prompts, texts) for name, texts in responses.items()}
    if not any(opinions.counts for opinions in given.values()):
        return {}
    found: dict[str, Any] = {
        "values": on_common_prompts({name: opinions.values for name, opinions in given.items()}),
        "opinions": {name: opinions.counts for name, opinions in given.items()},
    }
    if config.metrics.judge is not None and config.metrics.judge.pairwise:
        first, *others = responses
        asked = {name: scoreboard.preferences(prompts, responses[name], responses[first]) for name in others}
        found["preferences"] = {
            f"{name}-{first}": preference_summary(preferred)
            for name, preferred in asked.items()
            if preferred is not None
        }
    return found


def heads_of_a_run(config: Config, observer: str, models: Iterable[str]) -> Path | None:
    """heads.json of the first of the models that a run trained from this observer; None where there is none.

    The preset `robust` is then what it was for that run, and another that learns heads reads the run's, instead of any
    that are found anew. The preset itself is this command's: one that a run named has to be named again.
    """
    base = of_model(observer, config.model.revision) | {"reward.layers": config.reward.layers}
    for path in models:
        run = Path(path).parent
        try:
            trained = RunDirectory(run, "").identity() if (run / HEADS).is_file() else {}
        except (InputError, StorageError):  # no run, or one whose records are damaged
            continue
        if trained and all(trained.get(key) == value for key, value in base.items()):
            return run / HEADS
    return None


class SharedObserver:
    """The first model, as the observer of every model's responses, in its own tokens.

    ``config`` names that model, and ``kept`` is a file of its heads, if there is one. ``named`` is its reward.
    """

    def __init__(
        self,
        config: Config,
        policy: Policy,
        prompts: Sequence[Prompt],
        checker: Checker | None,
        world: World,
        console: Console,
        kept: Path | None = None,
    ):
        self.policy = policy
        self.prompts = {prompt.index: prompt for prompt in prompts}
        model = of_model(base_name(config), config.model.revision)
        config, salience, _ = choose_reward(policy, config, prompts, world, console, kept=kept, model=model)
        self.reward = build_reward(config.reward, checker)
        self.named = f"the preset {config.reward.preset}" if config.reward.terms is None else "reward.terms"
        self._measure = measure_signals(self.reward, policy, salience)
        with console.status("the first model answers a few prompts, to tell how much its answers vary"):
            self.spread = spread_of(
                policy,
                prompts,
                config.sampling,
                self.reward,
                self._measure,
                world=world,
                prompts_per_pass=config.train.micro_batch,
            )

    def measures(self, policy: Policy) -> Callable[[Rollout], torch.Tensor]:
        """The signals of ``policy``'s responses: of its very tokens where both models read them alike."""
        alike = (
            policy.tokenizer.get_vocab() == self.policy.tokenizer.get_vocab()
            and policy.eos_ids == self.policy.eos_ids
            and policy.readable.kind == self.policy.readable.kind
        )

        def measure(rollout: Rollout) -> torch.Tensor:
            prompts = [self.prompts[prompt.index] for prompt in rollout.prompts]
            same = alike and [p.ids for p in prompts] == [p.ids for p in rollout.prompts]
            return self._measure(rollout if same else read_by(self.policy, rollout, prompts))

        return measure

    def values(self, answers: Answers) -> dict[str, np.ndarray]:
        """``reward`` and ``signal/NAME``, [P] each; the reward's zero is still to be chosen."""
        assert answers.signals is not None
        signals = torch.from_numpy(answers.signals).double()
        rewards = self.reward.relative(signals, torch.zeros_like(self.spread), self.spread)
        means = signals.mean(1).unbind(-1)
        return {"reward": rewards.mean(1).numpy()} | {
            f"signal/{name}": mean.numpy() for name, mean in zip(self.reward.names, means, strict=True)
        }


def _shared(prompts: list[Prompt], asked: dict[str, list[Prompt]], name: str) -> list[Prompt]:
    """Those of ``prompts`` that every model so far was asked. Raises InputError when there is none."""
    indices = set.intersection(*({p.index for p in some} for some in (prompts, *asked.values())))
    if not indices:
        raise InputError(
            f"{name} and {', '.join(asked)} have no prompt in common: each dropped what the other can read. "
            "Lower data.max_prompt_tokens with data.overlong: truncate_right, or evaluate them one by one."
        )
    return [prompt for prompt in prompts if prompt.index in indices]
