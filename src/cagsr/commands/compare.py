"""`cagsr compare`: every system on the same base, prompts, sampling and budget, and a table to believe."""

import json
import time
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.console import Console

from cagsr import build
from cagsr.commands import silence_libraries
from cagsr.commands.arena import Arena
from cagsr.commands.report import report_at_end
from cagsr.commands.sft import run_sft
from cagsr.comparison import compared
from cagsr.config import Config, check_paths
from cagsr.errors import CagsrError, InputError
from cagsr.leaderboard import csv_text, markdown
from cagsr.records import CONFIG, RUN, RunDirectory, write_atomically
from cagsr.scoreboard import on_common_prompts
from cagsr.systems import resolve
from cagsr.systems.recipe import NotForThisDataError

__all__ = ["compare", "quick"]

BASE = "no-rl"
INPUTS = "inputs.json"
# What may change when a comparison is resumed: no run that is there already depends on it.
FREE = ("systems", "seeds", "labels", "directory", "control", "level", "length_tolerance")


def quick(config: Config) -> Config:
    """The same comparison, small: one seed, a third of the steps, fifty prompts, the fewest human pairs."""
    given, train = config.compare, config.train
    steps = min(train.steps, max(10, train.steps // 3))
    asked = [count for count in given.labels if f"hybrid-{count}" in (given.systems or ())]
    smaller = {
        "train": train.model_copy(
            update={"steps": steps, "warmup_steps": train.warmup_steps * steps // train.steps}
        ),
        "data": config.data.model_copy(update={"evaluation_count": min(50, config.data.evaluation_count)}),
        "compare": given.model_copy(
            update={
                "seeds": given.seeds[:1],
                "labels": asked or [min(given.labels)],
                "directory": f"{given.directory}-quick",
                "synthetic_pairs": min(200, given.synthetic_pairs),
            }
        ),
    }
    return config.model_copy(update=smaller)


def compare(config: Config, console: Console, *, resume: bool = False) -> dict[str, Any]:
    """Run all systems with all seeds; the summary that ``summary.json`` holds, with table.csv and table.md beside.

    Every run is an ordinary run directory, ``SYSTEM/seed-N``, with ``responses.jsonl``: the held-out prompts, what
    the system answered greedily, and every metric of it. ``resume`` goes on where an earlier comparison stopped.
    """
    silence_libraries()
    started = time.perf_counter()
    systems = resolve(config.compare.systems, config.compare.labels)
    systems = {BASE: systems.pop(BASE, resolve([BASE], [])[BASE]), **systems}
    resolve([config.compare.control], config.compare.labels)  # a misspelt control would only not be there
    directory = Path(config.compare.directory)
    if PartialState().num_processes > 1:
        raise InputError("cagsr compare runs as one process; start it without accelerate launch or torchrun.")
    build.check_metrics(config)
    build.check_evaluation_data(config)
    record = _open(config, directory, resume)
    try:
        config = _with_base(config, directory, console)
        arena = Arena(config, directory, console)
    except CagsrError:
        if not resume:
            _abandon(directory)
        raise
    _check_inputs(directory, arena.inputs())
    not_for: dict[str, str] = {}
    for number, seed in enumerate(config.compare.seeds):
        bench = arena.bench(seed)
        for name, system in systems.items():
            if name in not_for or (number and name == BASE):
                continue
            try:
                arena.measure(name, system, bench)
            except NotForThisDataError as reason:
                not_for[name] = str(reason)
                arena.found.pop(name, None)  # with some of the seeds only it cannot be compared
                console.print(f"{name}: not for this data ({reason})", highlight=False)
    summary = {
        "task": config.data.task or config.data.source,
        "base": build.base_name(config),
        "seeds": list(config.compare.seeds),
        "prompts": len(arena.prompts),
        "budget": _budget(config),
        **_compared(arena, config),
        "not_for_this_data": not_for,
        "measured_by": arena.scoreboard.describe(),
        "reward_models": arena.reward_models(),
        "pairs_on_held_out_prompts_left_out": arena.held_out_pairs,
        "seconds": round(time.perf_counter() - started, 1),
    }
    record.write_summary(summary)
    write_atomically(directory / "table.csv", csv_text(summary))
    write_atomically(directory / "table.md", markdown(summary))
    report_at_end(directory, console)
    return summary


def _open(config: Config, directory: Path, resume: bool) -> RunDirectory:
    check_paths(
        config.model_copy(update={"run": config.run.model_copy(update={"directory": str(directory)})})
    )
    if not resume:
        RunDirectory.refuse_used(directory)
        return RunDirectory.create(directory, config.as_yaml(), {})
    record = RunDirectory.resume(directory, 0)
    before = Config.load(directory / "config.yaml")
    if _identity(before) != _identity(config):
        changed = [name for name, value in _identity(config).items() if value != _identity(before).get(name)]
        raise InputError(
            f"{directory} was started with another {', '.join(changed)}. "
            "Systems, seeds and numbers of labels may be added; for another comparison choose another "
            "compare.directory."
        )
    write_atomically(directory / "config.yaml", config.as_yaml())
    return record


def _abandon(directory: Path) -> None:
    """Take away the two files of a start that failed, where nothing else is there: the place is free again."""
    written = {directory / RUN, directory / CONFIG}
    if set(directory.iterdir()) == written:
        for path in written:
            path.unlink()


def _check_inputs(directory: Path, inputs: dict[str, str]) -> None:
    """Raises InputError where runs that are there already stood on something else."""
    path = directory / INPUTS
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = [name for name, value in inputs.items() if before.get(name) != value]
        if changed:
            raise InputError(
                f"{directory}: the {', '.join(changed)} of this comparison changed since it was started; its runs "
                "cannot be compared with new ones. Choose another compare.directory."
            )
    write_atomically(path, json.dumps(inputs, indent=2) + "\n")


def _identity(config: Config) -> dict[str, Any]:
    """What all runs of a comparison share."""
    content = config.model_dump(mode="json", exclude={"run": True})
    for key in FREE:
        del content["compare"][key]
    return content


def _with_base(config: Config, directory: Path, console: Console) -> Config:
    """The config with the base in it: as named, or trained now (once), or the one that ships."""
    if config.model.name is not None or config.sft.scratch is None:
        return config
    base = directory / "base"
    if not (base / "summary.json").exists():
        RunDirectory.move_aside(base)
        run_sft(
            config.model_copy(update={"sft": config.sft.model_copy(update={"directory": str(base)})}), console
        )
    return config.model_copy(update={"model": config.model.model_copy(update={"name": str(base / "model")})})


def _compared(arena: Arena, config: Config) -> dict[str, Any]:
    """Greedy: everything. Opinions: on the prompts that all have one. Sampled: the means. Cost: means over seeds."""
    given = config.compare
    against = [name for name in dict.fromkeys((BASE, given.control)) if name in arena.found]
    sampled = {name: values for name in arena.found if (values := arena.sampled(name))}
    opinions = on_common_prompts({name: arena.opinions(name) for name in arena.found})
    return {
        **compared(
            {name: arena.greedy(name) for name in arena.found},
            against,
            level=given.level,
            length_tolerance=given.length_tolerance,
        ),
        "opinions": compared(opinions, against, level=given.level),
        "sampled": compared(sampled, [], level=given.level)["systems"],
        "cost": {name: arena.cost(name) for name in arena.found},
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
