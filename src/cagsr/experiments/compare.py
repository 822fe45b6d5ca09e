"""`cagsr compare`: every system on the same base, prompts, sampling and budget, with paired differences."""

import json
import time
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.console import Console

from cagsr.config import Config, check_paths
from cagsr.data import splits
from cagsr.data.row_messages import say_not_measured
from cagsr.distributed.process_group import accelerated
from cagsr.errors import InputError
from cagsr.evaluation import metrics_from_config as instruments
from cagsr.evaluation.leaderboard import csv_text, markdown
from cagsr.evaluation.paired_differences import compared
from cagsr.evaluation.scoreboard import on_common_prompts, preference_summary
from cagsr.experiments.results import Results
from cagsr.experiments.runner import ComparisonRunner
from cagsr.experiments.systems import System, check_packages, find_systems
from cagsr.experiments.systems.recipe import NotForThisDataError
from cagsr.io.atomic_write import write_atomically
from cagsr.io.provenance import identity
from cagsr.io.quiet_libraries import warn
from cagsr.io.terminal import say
from cagsr.report.command import report_at_end
from cagsr.rewards.presets import build_reward, check_signal, possible
from cagsr.runs.identity import of_start
from cagsr.runs.session import Claim
from cagsr.tasks.bases import base_name
from cagsr.tasks.checkers import find_checker
from cagsr.training.dashboards import check_trackers
from cagsr.training.preflight import check_launch, check_training
from cagsr.training.sft_run import run_sft
from cagsr.training.trainer import READ

__all__ = ["compare", "quick"]

BASE = "no-rl"
# What may change when a comparison is resumed: no run that is there already depends on it.
FREE = ("systems", "seeds", "labels", "directory", "control", "level", "length_tolerance")


def quick(config: Config) -> Config:
    """The same comparison, small: one seed, a third of the steps, fifty prompts, the fewest human pairs."""
    given, train = config.compare, config.train
    steps = min(train.steps, max(10, train.steps // 3))
    asked = [count for count in given.labels if f"hybrid-{count}" in (given.systems or ())]
    return config.replaced(
        {
            "train.steps": steps,
            "train.warmup_steps": train.warmup_steps * steps // train.steps,
            "data.evaluation_count": min(50, config.data.evaluation_count),
            "compare.seeds": given.seeds[:1],
            "compare.labels": asked or [min(given.labels)],
            "compare.directory": f"{given.directory}-quick",
            "compare.synthetic_pairs": min(200, given.synthetic_pairs),
        }
    )


def compare(
    config: Config | str | Path,
    console: Console | None = None,
    *,
    resume: bool = False,
    accept_changes: bool = False,
) -> dict[str, Any]:
    """Run all systems with all seeds; the summary that ``summary.json`` holds, with table.csv and table.md beside.

    ``config`` is a `Config` or a YAML file. This is `cagsr compare`.

    Every run is an ordinary run directory, ``SYSTEM/seed-N``, with ``responses.jsonl``: the held-out prompts, what
    the system answered greedily, and every metric of it. ``resume`` goes on where an earlier comparison stopped.
    """
    config, console = Config.of(config), console or Console()
    started = time.perf_counter()
    systems = find_systems(config.compare.systems, config.compare.labels)
    systems = {BASE: systems.pop(BASE, find_systems([BASE], [])[BASE]), **systems}
    # A misspelt control would only not be there.
    find_systems([config.compare.control], config.compare.labels)
    accelerator = accelerated(mixed_precision=config.train.mixed_precision)
    check_launch(accelerator, "cagsr compare")
    _check(config, systems)
    claim = Claim(
        config.compare.directory,
        config,
        _identity(config, accelerator),
        accelerator,
        resume=resume,
        accept_changes=accept_changes,
        console=console,
    )
    with claim:
        runner = ComparisonRunner(_with_base(claim, console), claim.directory, console, accept_changes)
        _start(claim, runner.inputs())
        runner.keep_heads()
        if config.compare.control not in systems:
            control = config.compare.control
            warn(console, f"no comparison with compare.control: {control} is not among compare.systems")
        not_for = _run_all(runner, systems, config.compare.seeds, console)
        summary = _summary(runner, not_for)
        summary["seconds"] = round(time.perf_counter() - started, 1)
        say_not_measured(console, summary["measured_by"])
        _write(claim, summary)
    report_at_end(claim.directory, console)
    return summary


def _check(config: Config, systems: Mapping[str, System]) -> None:
    """Raises InputError for whatever can be wrong and needs no model to be seen: the base may take hours."""
    check_paths(config.replaced({"run.directory": config.compare.directory}))
    if config.model.load_in_4bit:
        raise InputError(
            "model.load_in_4bit: adapters are compared on the whole base, and this one would answer in four bits. "
            "Leave it out."
        )
    if config.model.lora is not None and config.model.lora.path is not None:
        raise InputError(
            "model.lora.path: systems are compared on a whole base. Merge it (`cagsr export ADAPTER DIRECTORY`), name "
            "that as model.name, and set model.lora for a new adapter or leave it out."
        )
    check_packages(systems, config.compare.preferences is not None)
    check_trackers(config.run.trackers)
    instruments.check_metrics(config)
    splits.check_evaluation_data(config)
    splits.check_pairs(config)
    checker = find_checker(config.data)
    for each in possible(config):
        check_training(each, build_reward(each.reward, checker))
    if "policy-gradient" in systems:
        check_signal("compare.conventional_reward", config.compare.conventional_reward, checker)


def _identity(config: Config, accelerator: Accelerator) -> dict[str, Any]:
    """What all runs of a comparison share, beside `ComparisonRunner.inputs`."""
    compare = [f"compare.{key}" for key in type(config.compare).model_fields if key not in FREE]
    # People rate what the systems answered, so their ratings come last.
    metrics = [f"metrics.{key}" for key in type(config.metrics).model_fields if key != "ratings"]
    return of_start(config, (*READ, "sft", *metrics, *compare), accelerator)


def _with_base(claim: Claim, console: Console) -> Config:
    """The config with the base in it: as named, or the one that ships, or trained now (once) in ``base/``."""
    config, base = claim.config, claim.directory / "base"
    if config.model.name is not None or config.sft.scratch is None:
        return config
    claim.start({})
    made = config.replaced({"sft.directory": str(base)})
    run_sft(made, console, resume=claim.resume, accept_changes=claim.accept_changes)
    return config.replaced({"model.name": str(base / "model")})


def _start(claim: Claim, inputs: dict[str, str]) -> None:
    """The comparison begins or goes on, on the same inputs as before: another cannot be accepted."""
    if claim.resume and claim.run is not None:
        claim.run.check_identity(inputs)
    claim.start(inputs)
    claim.rewind(None)


def _run_all(
    runner: ComparisonRunner, systems: dict[str, System], seeds: Sequence[int], console: Console
) -> dict[str, str]:
    """Every system with every seed; returns those that are not for this data, with why."""
    not_for: dict[str, str] = {}
    done, total = count(1), len(seeds) * (len(systems) - 1) + 1  # the base is the same for all seeds
    for seed in seeds:
        bench = runner.bench(seed)
        for name, system in systems.items():
            if name == BASE and seed != seeds[0]:
                continue
            place = f"{next(done)}/{total}"
            if name in not_for:
                continue
            try:
                runner.run(name, system, bench, place)
            except NotForThisDataError as reason:
                not_for[name] = str(reason)
                runner.results.drop(name)  # with some of the seeds only it cannot be compared
                say(console, f"{place}  {name}: not for this data ({reason})")
    return not_for


def _summary(runner: ComparisonRunner, not_for: dict[str, str]) -> dict[str, Any]:
    config = runner.config
    return {
        "task": config.data.name,
        "base": base_name(config),
        "base_model": runner.base_model,
        "seeds": list(config.compare.seeds),
        "prompts": len(runner.prompts),
        "reward": config.reward.preset if config.reward.terms is None else "reward.terms",
        "budget": _budget(config),
        **_compared(runner.results, config),
        "not_for_this_data": not_for,
        "warnings": runner.results.warnings,
        "measured_by": runner.scoreboard.describe(),
        "reward_models": _reward_models(runner.directory),
        "pairs_on_held_out_prompts_left_out": runner.held_out_pairs,
    }


def _write(claim: Claim, summary: dict[str, Any]) -> None:
    assert claim.run is not None, "a comparison is one process"
    write_atomically(claim.directory / "table.csv", csv_text(summary))
    write_atomically(claim.directory / "table.md", markdown(summary))
    claim.run.write_summary(summary)


def _compared(results: Results, config: Config) -> dict[str, Any]:
    """Greedy: everything. Opinions: on the prompts that all have one. Sampled: the means. Cost: means over seeds."""
    given = config.compare
    against = [name for name in dict.fromkeys((BASE, given.control)) if name in results.found]
    greedy, sampled, opinions = (
        {name: results.stacked(name, part) for name in results.found}
        for part in ("greedy", "sampled", "opinions")
    )
    opinions = on_common_prompts(opinions)
    return {
        **compared(greedy, against, level=given.level, length_tolerance=given.length_tolerance),
        "opinions": compared(opinions, against, level=given.level),
        "opinion_prompts": {
            metric: values.shape[-1] for metric, values in next(iter(opinions.values())).items()
        },
        "preferences": {
            f"{name}-{BASE}": preference_summary(results.preferences(name), level=given.level)
            for name in results.preferred
        },
        "sampled": compared({name: each for name, each in sampled.items() if each}, [], level=given.level)[
            "systems"
        ],
        "cost": {name: results.cost(name) for name in results.found},
    }


def _reward_models(directory: Path) -> dict[str, Any]:
    """Which weights each reward model has, what it was trained on, how well it tells pairs that it was not."""
    found = sorted((directory / "reward-models").glob("*/training.json"))
    return {
        path.parent.name: {**identity(str(path.parent)), **json.loads(path.read_text(encoding="utf-8"))}
        for path in found
    }


def _budget(config: Config) -> dict[str, Any]:
    train, sampling = config.train, config.sampling
    return {
        "steps": train.steps,
        "prompts_per_step": train.prompts_per_step,
        "candidates": sampling.candidates,
        "responses": train.steps * train.prompts_per_step * sampling.candidates,
        "temperature": sampling.temperature,
        "learning_rate": train.learning_rate,
    }
