"""`cagsr demo`: a small model that omits facts, trained without labels and compared with its base and controls."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cagsr.config import Config, check_paths
from cagsr.data import splits
from cagsr.distributed.process_group import World, accelerated
from cagsr.errors import InputError, printable
from cagsr.evaluation.chosen_reward import ChosenReward, choose_reward
from cagsr.evaluation.evaluator import (
    Answers,
    answer,
    best_by_reward,
    measure_signals,
    response_rows,
    values_of,
)
from cagsr.evaluation.learnt_heads import HEADS
from cagsr.evaluation.tables import comparison_table, legend, shaded, shades, show_differences
from cagsr.experiments.instruct_model import instruct_model
from cagsr.experiments.recipes import trained_policy
from cagsr.io.atomic_write import write_atomically
from cagsr.io.terminal import say
from cagsr.metrics.bootstrap import summarise
from cagsr.metrics.slots import METRICS
from cagsr.models.build import build_policy
from cagsr.models.load import load_model, load_tokenizer
from cagsr.models.policy import Policy
from cagsr.report.command import report_at_end
from cagsr.rewards.presets import build_reward
from cagsr.runs.directory import RESPONSES, SUMMARY, RunDirectory
from cagsr.tasks.bases import BASES
from cagsr.tasks.checkers import find_checker
from cagsr.tasks.task import Checker
from cagsr.training.preflight import check_launch
from cagsr.training.sft_run import run_sft
from cagsr.training.trainer import Trainer
from cagsr.types import Prompt

__all__ = ["CONFIGS", "CONTROLS", "demo", "rebuild"]

DEMOS = Path(__file__).parent / "demos"
CONFIGS = {"encoder-decoder": "encoder-decoder.yaml", "causal": "causal.yaml", "instruct": "instruct.yaml"}
CONTROLS = ("paper", "lexical", "length", "oracle")
BEST_OF_CONTROLS = ("lexical", "length", "oracle")
SAMPLES = 3
LONGEST = 512
NOT_FOR = (
    "What this is not good for: the reward repairs omission. It adds no knowledge and checks no fact, so on question "
    "answering it does nothing or harm; a base that does not yet know how to say what it leaves out is not helped; "
    "and on real text it can raise invention while it repairs omission. Measure on your own prompts before you "
    "believe it."
)


def demo(
    kind: str,
    directory: Path,
    *,
    seed: int,
    full: bool,
    overrides: list[str],
    console: Console,
    resume: bool = False,
) -> dict[str, Any]:
    """Base, CAGSR and controls on held-out prompts; returns the summary that ``directory/summary.json`` holds.

    Controls without training are always there: the best of K of the base's own samples by several rewards.
    ``full`` also trains on the rewards of CONTROLS, each exactly as CAGSR was trained. An earlier demo in
    ``directory`` is moved aside, never overwritten; with ``resume`` one that was stopped goes on.
    """
    started = time.perf_counter()
    settings = [f"train.seed={seed}", f"run.directory={directory}", *overrides]
    if kind == "instruct" and not any(setting.startswith(("model.name=", "model=")) for setting in overrides):
        settings.append(f"model.name={instruct_model(console)}")
    config = Config.load(DEMOS / CONFIGS[kind], settings)
    check_paths(config)
    check_launch(accelerated(mixed_precision=config.train.mixed_precision), "cagsr demo")
    directory = Path(config.run.directory)
    if not resume:
        _move_earlier_aside(directory, console)
    elif _is_finished_demo(directory):
        say(console, f"{directory} is finished; nothing to do.")
        return json.loads((directory / SUMMARY).read_text(encoding="utf-8"))
    checker = find_checker(config.data)
    assert checker is not None, "the demo's tasks have checkers"
    base = build_policy(config)
    prompts, _ = splits.build_prompts(config, base, "heldout")
    about = f"{len(prompts)} held-out prompts, {base.readable}, seed {config.train.seed}"
    say(console, f"{config.data.task}: {about}")
    trained = {"cagsr": _greedy(_trained(config, "cagsr", resume, console), prompts, config)}
    # Training has learnt what the reward reads, and which it is: the controls are given the same heads and pieces.
    chosen = choose_reward(base, config, prompts, _world(config), Console(quiet=True), kept=directory / HEADS)
    for name in CONTROLS if full else ():
        control = _with_preset(chosen.config, name, directory / "controls" / name)
        trained[name] = _greedy(_trained(control, name, resume, console), prompts, config)
    systems = {"base": _greedy(base, prompts, config)}
    systems |= _best_of_base(base, prompts, chosen, config.reward.preset, checker) | trained
    summary = _measured(config, systems, prompts, checker, started)
    _show(summary, console)
    _show_samples(base, prompts, systems, console)
    say(console, f"{NOT_FOR}\n", style="dim")
    say(console, f"{directory}/: summary.json, responses.jsonl, metrics.jsonl, candidates.jsonl, model/")
    report_at_end(directory, console)
    return summary


def _trained(config: Config, name: str, resume: bool, console: Console) -> Policy:
    """The policy of a training run; one that had been finished before a demo was stopped is only loaded."""
    trained = Trainer(args=config, console=console).run(name=name, resume=resume)
    policy = trained.policy or trained_policy(config)
    return policy.to(_world(config).device)


def _measured(
    config: Config, systems: dict[str, Answers], prompts: list[Prompt], checker: Checker, started: float
) -> dict[str, Any]:
    """Measure every system; responses.jsonl for a reader, then summary.json, which says that the demo has ended."""
    directory = Path(config.run.directory)
    values, rows = {}, []
    for name, answers in systems.items():
        measured = values_of(answers, prompts, checker)
        values[name] = {metric: measured[metric] for metric in METRICS}
        rows += [{"system": name, **row} for row in response_rows(prompts, answers, values[name])]
    summary = {
        "task": config.data.task,
        "seed": config.train.seed,
        "seconds": round(time.perf_counter() - started, 1),
        **summarise(values, [(name, "base") for name in values if name != "base"]),
    }
    write_atomically(directory / RESPONSES, "".join(json.dumps(row) + "\n" for row in rows))
    write_atomically(directory / SUMMARY, json.dumps(summary, indent=2) + "\n")
    return summary


def _move_earlier_aside(directory: Path, console: Console) -> None:
    """A place for this demo: an earlier one is moved aside, anything else refused. Raises InputError."""
    earlier = RunDirectory.move_aside(directory) if _is_finished_demo(directory) else None
    if earlier is not None:
        say(console, f"{directory} was an earlier run; it is now {earlier}")
    try:
        RunDirectory.refuse_used(directory)
    except InputError as error:
        raise InputError(f"{error} A demo is given another with --directory.") from error


def _is_finished_demo(directory: Path) -> bool:
    """Only a demo that has ended is moved: a run that is going on would lose its place."""
    try:
        return "systems" in json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def _with_preset(config: Config, preset: str, directory: Path) -> Config:
    """A settled config with another reward, whose observer reads the heads that were learnt for the demo's own."""
    learnt = Path(config.run.directory) / HEADS
    heads = str(learnt) if config.reward.heads == "learn" else config.reward.heads
    other = {"reward.preset": preset, "reward.terms": None, "reward.heads": heads}
    return config.replaced({**other, "run.directory": str(directory)})


def _greedy(policy: Policy, prompts: list[Prompt], config: Config) -> Answers:
    sampling = config.sampling.greedy()
    return answer(policy, prompts, sampling, world=_world(config), prompts_per_pass=config.train.micro_batch)


def _world(config: Config) -> World:
    # Accelerate keeps the precision of the first Accelerator of a process and refuses another.
    return World(accelerated(mixed_precision=config.train.mixed_precision))


def _best_of_base(
    base: Policy, prompts: list[Prompt], chosen: ChosenReward, asked: str, checker: Checker
) -> dict[str, Answers]:
    """The base's own samples: one at random, and the best of K by each reward. What choosing alone gains.

    The reward that was chosen goes by the name of the preset that was ``asked`` for.
    """
    config, salience = chosen.config, chosen.salience
    k, directory = config.sampling.candidates, Path(config.run.directory)
    presets = {asked: config.reward.preset} | {preset: preset for preset in BEST_OF_CONTROLS}
    rewards = {
        name: build_reward(_with_preset(config, preset, directory).reward, checker)
        for name, preset in presets.items()
    }
    measures = [measure_signals(reward, base, salience) for reward in rewards.values()]
    answers = answer(
        base,
        prompts,
        config.sampling,
        world=_world(config),
        prompts_per_pass=config.train.micro_batch // k,
        measure=lambda rollout: torch.cat([measure(rollout) for measure in measures], -1),
    )
    assert answers.signals is not None
    found = {"base, sampled": answers}
    first = 0
    for preset, reward in rewards.items():
        last = first + len(reward.names)
        found[f"best of {k} by {preset}"] = best_by_reward(
            replace(answers, signals=answers.signals[..., first:last]), reward
        )
        first = last
    return found


def _show(summary: dict[str, Any], console: Console) -> None:
    title = f"{summary['task']}, held out; mean and 95 % interval (bootstrap over prompts)"
    console.print()
    console.print(comparison_table(summary, title, console.width))
    show_differences(summary, "cagsr-base", "cagsr", "base", console)
    errors = {name: metrics["slot_error_rate"]["mean"] for name, metrics in summary["systems"].items()}
    cut = 1 - errors["cagsr"] / max(errors["base"], 1e-9)
    change = f"{cut:.0%} fewer" if cut >= 0 else f"{-cut:.0%} more"
    say(
        console,
        f"\nSlot errors {errors['base']:.3f} -> {errors['cagsr']:.3f} ({change}) in "
        f"{summary['seconds']:.0f} s, without a label.",
        style="bold",
    )


def _show_samples(base: Policy, prompts: list[Prompt], systems: dict[str, Answers], console: Console) -> None:
    """Three prompts, shaded by what each response looked at, as the base sees it, on one scale."""
    colour = shades(console)
    console.print("\n[bold]Before and after[/]: the prompt, and how strongly the response attended to it")
    console.print(legend(colour))
    for prompt, before, after in list(
        zip(prompts, systems["base"].responses, systems["cagsr"].responses, strict=True)
    )[:SAMPLES]:
        texts = [before[0], after[0]]
        rollout = base.given([prompt], texts, limit=LONGEST)
        # The end-of-sequence row is left out, as coverage leaves it out: looking at the end says nothing.
        said = rollout.response_mask & (rollout.response_ids != base.eos_ids[0])
        attended = (base.observe(rollout).attention * said[:, :, None]).amax(1)
        written, columns = _written(prompt)
        strongest = float(attended[:, columns].max())
        for name, text, covered in zip(("base", "cagsr"), texts, attended, strict=True):
            shares = (covered[columns] / strongest).tolist()
            sample = Table.grid(padding=(0, 2, 0, 0))
            sample.add_row(Text(f"{name:>6}", style="bold"), shaded(written, shares, colour))
            sample.add_row("", Text(printable(text)))
            console.print(sample)
        console.print()


def _written(prompt: Prompt) -> tuple[Prompt, list[int]]:
    """The prompt without its template and special tokens, and which of its tokens are left."""
    spans = prompt.written(("last-user",))
    start, stop = spans[0][0], spans[-1][1]
    left = [n for n, (a, b) in enumerate(prompt.offsets) if a < b and start <= a and b <= stop]
    offsets = tuple((prompt.offsets[n][0] - start, prompt.offsets[n][1] - start) for n in left)
    ids = tuple(prompt.ids[n] for n in left)
    return replace(prompt, text=prompt.text[start:stop], offsets=offsets, ids=ids, turns=(), spelt=()), left


def rebuild(kind: str, console: Console) -> None:
    """Train the base of a demo anew and put it where it ships: ``bases/TASK`` in the package.

    Raises InputError for the demo of a pretrained model.
    """
    if kind == "instruct":
        raise InputError(
            "--rebuild-base: the base of this demo is a pretrained model, which does not ship; leave the option out"
        )
    with TemporaryDirectory() as workplace:
        config = Config.load(DEMOS / CONFIGS[kind], [f"sft.directory={workplace}/base"])
        run_sft(config, console)
        shipped = BASES / str(config.data.task)
        shutil.rmtree(shipped, ignore_errors=True)
        store_compact(Path(workplace) / "base" / "model", shipped)


def store_compact(model: Path, shipped: Path) -> None:
    """Copy a saved model with its weights in bfloat16: half the size, and what is loaded is what was measured."""
    tokenizer = load_tokenizer(str(model))
    compact, _ = load_model(str(model), dtype="bfloat16")
    compact.save_pretrained(shipped)
    tokenizer.save_pretrained(shipped)
