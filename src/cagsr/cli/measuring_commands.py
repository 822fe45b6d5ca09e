"""Commands that measure: eval, lm-eval, compare, score, calibrate, probe.

They import what they need when they run, so that `cagsr --help` imports no torch.
"""

import json
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from cagsr.cli.options import (
    AcceptChanges,
    Command,
    ConfigFile,
    Json,
    MaxTime,
    Overrides,
    SkipInvalid,
    console_for,
    load,
    print_json,
)
from cagsr.errors import EndpointError, InputError, StorageError, VerdictError
from cagsr.io.streams import demand_written, print_result
from cagsr.io.terminal import say

__all__ = ["app"]

app = typer.Typer()


@app.command(
    "eval",
    cls=Command,
    epilog="Example: cagsr eval base=runs/base/model cagsr=runs/e2e/model --config examples/e2e.yaml",
)
def evaluate(
    arguments: Annotated[
        list[str], typer.Argument(metavar="NAME=MODEL... [KEY=VALUE]...", help="Models to compare.")
    ],
    config: ConfigFile = None,
    split: Annotated[
        Literal["heldout", "development", "train"],
        typer.Option(help="Which prompts; train: those of data.source itself."),
    ] = "heldout",
    sampled: Annotated[
        bool, typer.Option("--sampled", help="Mean over K samples instead of greedy.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="A new directory that keeps the result, for cagsr report.")
    ] = None,
    skip_invalid: SkipInvalid = False,
    as_json: Json = False,
) -> None:
    """Models side by side on held-out prompts, each compared with the first."""
    from cagsr.evaluation.evaluate import evaluate as run_evaluation
    from cagsr.evaluation.evaluate import named_models, split_arguments
    from cagsr.evaluation.tables import show_evaluation
    from cagsr.runs.directory import RunDirectory

    named, overrides = split_arguments(arguments)
    models = named_models(named)
    if not models:
        raise InputError("cagsr eval needs at least one model: NAME=PATH")
    # Only so that a config with data.source is complete: every model is loaded by its own name.
    overrides.append(f"model.name={json.dumps(next(iter(models.values())))}")
    console = console_for(as_json)
    loaded = load(config, overrides, skip_invalid)
    if output is not None:
        _check_new(output, loaded)
    summary = run_evaluation(loaded, models, split, not sampled, console)
    try:
        if not as_json:
            show_evaluation(summary, console)
        print_json(summary, as_json, console)
    finally:  # what cannot be printed is kept, and what cannot be kept was printed
        if output is not None and not console.quiet:
            identity = {"models": summary["models"]}
            with closing(RunDirectory.create(output, loaded.as_yaml(), identity)) as kept:
                kept.write_summary(summary)
    demand_written()
    if failed := summary["measured_by"].get("not_measured", {}).get("judge"):
        raise EndpointError(f"all but the judge's part was measured: {failed}")


def _check_new(output: Path, config: Any) -> None:
    """Raise InputError or StorageError where no new directory can be made of ``output``, before any work is done."""
    from cagsr.config import check_paths
    from cagsr.runs.directory import RunDirectory

    RunDirectory.refuse_used(output)
    try:
        check_paths(config.replaced({"run.directory": str(output)}))
    except (InputError, StorageError) as error:
        raise type(error)(str(error).replace("run.directory:", "--output:", 1)) from error


@app.command(
    "lm-eval",
    cls=Command,
    epilog="Example: cagsr lm-eval runs/my --tasks ifeval,arc_easy --python harness/bin/python",
)
def lm_eval(
    run: Annotated[
        Path, typer.Argument(help="A run, or its best/; measured beside the base that it began with.")
    ],
    tasks: Annotated[str, typer.Option(help="Tasks of lm-eval, separated by commas.")],
    python: Annotated[
        Path | None, typer.Option(help="Python that has lm_eval; default: the program lm_eval on PATH.")
    ] = None,
    include_path: Annotated[Path | None, typer.Option(help="Directory of tasks of your own.")] = None,
    limit: Annotated[float | None, typer.Option(help="Samples of each task, or a share below 1.")] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(min=0, help="Examples in a prompt; default: the task's.")
    ] = None,
    apply_chat_template: Annotated[
        bool, typer.Option("--apply-chat-template", help="Ask through the model's chat template.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="lm-eval's seeds, all four.")] = 0,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Type of the weights; default: that of the run's config."),
    ] = None,
    batch_size: Annotated[str, typer.Option(help="Prompts at once, or auto.")] = "1",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; default: lm-eval's choice.")] = None,
    as_json: Json = False,
) -> None:
    """lm-evaluation-harness on a run's base and result, side by side: did it forget? Kept as RUN/lm-eval.json."""
    from cagsr.evaluation.tables import harness_table
    from cagsr.experiments.lm_harness import Settings, harness, measure_elsewhere

    console = console_for(as_json)
    where = None if include_path is None else str(include_path)
    given = Settings(tasks, num_fewshot, limit, seed, dtype, batch_size, device, where, apply_chat_template)
    found = measure_elsewhere(run, given, harness(None if python is None else str(python)), console)
    if not as_json:
        console.print(harness_table(found["table"]))
    print_json(found["table"], as_json)


@app.command(cls=Command, epilog="Example: cagsr compare --config examples/paper.yaml --quick")
def compare(
    overrides: Overrides = None,
    config: ConfigFile = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="One seed, a third of the steps, fifty prompts.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on where a comparison stopped; systems and seeds may be added."),
    ] = False,
    accept_changes: AcceptChanges = False,
    max_time: MaxTime = None,
    skip_invalid: SkipInvalid = False,
    list_systems: Annotated[bool, typer.Option("--list", help="Name every system, and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Every system on the same base, prompts and budget, side by side."""
    console = console_for(as_json)
    if list_systems:
        from cagsr.experiments.systems import find_systems

        for name, system in find_systems(None, [10]).items():
            say(console, name, style="bold")
            say(console, (system.__doc__ or "").splitlines()[0], indent="    ")
        return
    from cagsr.evaluation.leaderboard import leaderboard
    from cagsr.experiments.compare import compare as run_comparison
    from cagsr.experiments.compare import quick as smaller

    given = load(config, overrides, skip_invalid, max_time)
    asked = smaller(given) if quick else given
    summary = run_comparison(asked, console, resume=resume, accept_changes=accept_changes)
    seeds = len(summary["seeds"])
    title = f"{summary['task']}, held out, {summary['prompts']} prompts, {seeds} seed{'s'[: seeds > 1]}; 95 % intervals"
    console.print(leaderboard(summary, title, console.width))
    say(console, f"{asked.compare.directory}/: table.md and table.csv have every metric, interval and cost")
    print_json(summary, as_json)


@app.command(
    cls=Command, epilog="Example: cagsr score pairs.jsonl model.name=runs/base/model reward.preset=robust"
)
def score(
    source: Annotated[str, typer.Argument(help="JSONL (or CSV, Parquet) with columns prompt and response.")],
    overrides: Overrides = None,
    config: ConfigFile = None,
    output: Annotated[Path | None, typer.Option(help="JSONL to write; default: standard output.")] = None,
    save_attention: Annotated[
        Path | None,
        typer.Option(help="Directory for one .npz a row: A [T S], prompt_ids, response_ids, layers."),
    ] = None,
    skip_invalid: SkipInvalid = False,
) -> None:
    """Signals and reward of responses that exist already, by any model."""
    from cagsr.evaluation.score_file import score_file
    from cagsr.io.atomic_write import refuse_existing, write_atomically

    if output is not None:
        refuse_existing(output, "--output")
    chosen = overrides or []
    if config is None and not any(one.startswith(("data.task=", "data.source=")) for one in chosen):
        chosen = [f"data.source={json.dumps(source)}", *chosen]
    loaded = load(config, chosen, skip_invalid)
    rows = score_file(loaded, source, Console(stderr=True), save_attention)
    lines = [json.dumps(row) for row in rows]
    if output is None:
        print_result("\n".join(lines))
    else:
        write_atomically(output, "\n".join(lines) + "\n")


@app.command(
    cls=Command,
    epilog="Example: cagsr calibrate --config examples/e2e.yaml --output preset.yaml; "
    "then: cagsr train ... reward.preset=preset.yaml",
)
def calibrate(
    overrides: Overrides = None,
    config: ConfigFile = None,
    output: Annotated[Path, typer.Option(help="The preset to write.")] = Path("preset.yaml"),
    prompts: Annotated[int, typer.Option(min=2, help="Training prompts to make contrasts of.")] = 64,
    pairs: Annotated[
        str | None, typer.Option(help="JSONL with columns prompt, chosen, rejected: labels on top.")
    ] = None,
    labels: Annotated[int | None, typer.Option(min=2, help="Use only so many of the pairs.")] = None,
    skip_invalid: SkipInvalid = False,
    as_json: Json = False,
) -> None:
    """Fit the weights of a reward's terms to a model, without labels or with a few."""
    from cagsr.probing.calibrate import calibrate as run_calibration

    chosen = overrides or []
    if not any(one.startswith(("reward.preset=", "reward.terms=")) for one in chosen):
        chosen = ["reward.preset=candidates", *chosen]
    loaded = load(config, chosen, skip_invalid)
    summary = run_calibration(
        loaded, output, console_for(as_json), prompts=prompts, pairs=pairs, labels=labels
    )
    print_json(summary, as_json)


@app.command(cls=Command, epilog="Example: cagsr probe --config my.yaml --pairs labelled.jsonl")
def probe(
    overrides: Overrides = None,
    config: ConfigFile = None,
    prompts: Annotated[int, typer.Option(min=2, help="Development prompts to sample.")] = 100,
    pairs: Annotated[
        str | None, typer.Option(help="JSONL with columns prompt, chosen, rejected (compare.preferences).")
    ] = None,
    fail_on: Annotated[
        Literal["never", "no", "caution"],
        typer.Option(help="Exit with 5 at this verdict or a worse one, for pipelines."),
    ] = "never",
    skip_invalid: SkipInvalid = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one line of JSON on standard output.")
    ] = False,
) -> None:
    """Before any training: is a reward worth following here? Go, caution or no, with reasons."""
    from cagsr.probing.run import probe as run_probe
    from cagsr.probing.table import show

    chosen = [*(overrides or []), *([] if pairs is None else [f"compare.preferences={json.dumps(pairs)}"])]
    console = console_for(as_json)
    summary = run_probe(load(config, chosen, skip_invalid), console, prompts)
    if not as_json:
        show(summary, console)
    elif not console.quiet:
        print_result(json.dumps(summary))
    if summary["verdict"] in {"never": (), "no": ("no",), "caution": ("no", "caution")}[fail_on]:
        raise VerdictError(f"cagsr probe: the verdict is {summary['verdict']} (--fail-on {fail_on})")
