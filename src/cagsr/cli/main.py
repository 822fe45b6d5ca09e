"""The command line: reads arguments, prints what the commands return, and turns errors into exit codes.

`cagsr --help` imports no torch: the commands import what they need when they run.
"""

import json
import re
import signal
import sys
from pathlib import Path
from shutil import get_terminal_size
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from typer.core import TyperGroup

import cagsr
from cagsr.cli.options import (
    AcceptChanges,
    Command,
    ConfigFile,
    Json,
    MaxTime,
    Overrides,
    SkipInvalid,
    console_for,
    print_json,
    time_limit,
)
from cagsr.distributed.launcher import refuse_several
from cagsr.errors import (
    CagsrError,
    EndpointError,
    InputError,
    MemoryRanOutError,
    StoppedError,
    UnsupportedModelError,
    VerdictError,
    ran_out_of_memory,
)
from cagsr.io.places import expanded
from cagsr.io.shutdown import Terminated, start_clock, terminate
from cagsr.io.streams import demand_written, print_result, settle_streams
from cagsr.io.terminal import say, wrapped

__all__ = ["app", "main"]

# Settings as the options of other programs spell them.
DASHED = re.compile(r"--set(=|$)|--\w+\.\w+")
# Commands that do not share their work among processes.
ALONE = ("calibrate", "compare", "demo", "rate", "report", "score")


class Commands(TyperGroup):
    """Command group that reports a run stopped at Ctrl-C, where Typer is silent, and keeps ALONE to one process."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if name in ALONE:
            refuse_several(name)
        for given in rest:
            dashed = DASHED.match(given)
            if dashed:
                raise InputError(
                    f"{given}: keys take no dashes and no --set; write section.key=value, train.steps=20"
                )
        return name, command, rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("\nstopped by Ctrl-C; a run goes on with --resume", file=sys.stderr)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Post-train language models without labels: the reward is the model's own attention to the prompt.",
    epilog="Exit codes: 0 done, 2 bad input, 3 numbers went bad, 4 storage, 5 probe --fail-on, 69 no server, "
    "71 memory, 75 resumable, 130 Ctrl-C.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"cagsr {cagsr.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command(cls=Command, epilog="Example: cagsr demo --model causal --full")
def demo(
    overrides: Overrides = None,
    model: Annotated[
        Literal["encoder-decoder", "causal"], typer.Option(help="Which demo.")
    ] = "encoder-decoder",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the reinforcement learning.")] = 0,
    full: Annotated[
        bool, typer.Option("--full", help="Train the paper, lexical, length, oracle rewards too.")
    ] = False,
    directory: Annotated[Path, typer.Option(help="Where the run is written.")] = Path("runs/demo"),
    rebuild_base: Annotated[
        bool, typer.Option("--rebuild-base", help="Train the base that ships anew.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a demo that was stopped.")] = False,
    as_json: Json = False,
) -> None:
    """Train a small model that leaves things out, without labels, and show how much better it became."""
    from cagsr.experiments.demo import demo as run_demo
    from cagsr.experiments.demo import rebuild

    _silence()
    console = console_for(as_json)
    if rebuild_base:
        rebuild(model, console)
    given = {"seed": seed, "full": full, "overrides": overrides or [], "resume": resume}
    summary = run_demo(model, directory, console=console, **given)
    print_json(summary, as_json)


@app.command(cls=Command, epilog="Example: cagsr sft --config examples/e2e.yaml sft.steps=2000")
def sft(
    overrides: Overrides = None,
    config: ConfigFile = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint of sft.directory.")
    ] = False,
    accept_changes: AcceptChanges = False,
    max_time: MaxTime = None,
    skip_invalid: SkipInvalid = False,
    as_json: Json = False,
) -> None:
    """Supervised fine-tuning on references: the base to start from."""
    from cagsr.training.sft_run import run_sft

    given = _load(config, overrides, skip_invalid, max_time)
    console = console_for(as_json)
    outcome = run_sft(given, console, resume=resume, accept_changes=accept_changes)
    print_json(outcome, as_json, console)


@app.command(cls=Command, epilog="Example: cagsr train --config examples/e2e.yaml reward.preset=robust")
def train(
    overrides: Overrides = None,
    config: ConfigFile = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint of run.directory.")
    ] = False,
    accept_changes: AcceptChanges = False,
    max_time: MaxTime = None,
    skip_invalid: SkipInvalid = False,
    as_json: Json = False,
) -> None:
    """Reinforcement learning from prompts alone."""
    from cagsr.report.command import reported
    from cagsr.training.trainer import train as run_training

    given, console = _load(config, overrides, skip_invalid, max_time), console_for(as_json)
    with reported(Path(given.run.directory), console):
        trained = run_training(given, resume=resume, accept_changes=accept_changes, console=console)
    print_json(trained.outcome, as_json, console)


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
    skip_invalid: SkipInvalid = False,
    as_json: Json = False,
) -> None:
    """Models side by side on held-out prompts, each compared with the first."""
    from cagsr.evaluation.evaluate import evaluate as run_evaluation
    from cagsr.evaluation.evaluate import named_models, split_arguments
    from cagsr.evaluation.tables import show_evaluation

    named, overrides = split_arguments(arguments)
    models = named_models(named)
    if not models:
        raise InputError("cagsr eval needs at least one model: NAME=PATH")
    # Only so that a config with data.source is complete: every model is loaded by its own name.
    overrides.append(f"model.name={json.dumps(next(iter(models.values())))}")
    console = console_for(as_json)
    loaded = _load(config, overrides, skip_invalid)
    summary = run_evaluation(loaded, models, split, not sampled, console)
    if not as_json:
        show_evaluation(summary, console)
    print_json(summary, as_json, console)
    demand_written()
    if failed := summary["measured_by"].get("not_measured", {}).get("judge"):
        raise EndpointError(f"all but the judge's part was measured: {failed}")


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

    given = _load(config, overrides, skip_invalid, max_time)
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
    loaded = _load(config, chosen, skip_invalid)
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
    loaded = _load(config, chosen, skip_invalid)
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
    summary = run_probe(_load(config, chosen, skip_invalid), console, prompts)
    if not as_json:
        show(summary, console)
    elif not console.quiet:
        print_result(json.dumps(summary))
    if summary["verdict"] in {"never": (), "no": ("no",), "caution": ("no", "caution")}[fail_on]:
        raise VerdictError(f"cagsr probe: the verdict is {summary['verdict']} (--fail-on {fail_on})")


@app.command(
    cls=Command,
    epilog="Example: cagsr rate runs/paper --raters anna,ben; then: cagsr rate runs/paper --export",
)
def rate(
    directory: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run or a comparison.")],
    raters: Annotated[
        str | None, typer.Option(help="Names, commas between them; with --export: of these only.")
    ] = None,
    export: Annotated[
        bool, typer.Option("--export", help="Write ratings.jsonl and pairs.jsonl, and show what they say.")
    ] = False,
    mode: Annotated[
        Literal["scores", "pairs"], typer.Option(help="Rate one response from 1 to 5, or choose of two.")
    ] = "scores",
    items: Annotated[int | None, typer.Option(min=1, help="About how many to rate; 60 if left out.")] = None,
    systems: Annotated[str | None, typer.Option(help="Only these systems; commas between them.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Draws the items; 0 if left out.")] = None,
    output: Annotated[Path | None, typer.Option(help="Directory for --export; default: RUN.")] = None,
    host: Annotated[str, typer.Option(help="Address to answer at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8765,
    open_to_network: Annotated[
        bool, typer.Option("--open-to-network", help="Allow a --host that others can reach.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Let people rate responses, blind, on a page of this computer; every answer is kept in RUN/ratings.sqlite."""
    from cagsr.rating.session import export_ratings, open_rating

    console = console_for(as_json)
    if export:
        summary = export_ratings(directory, output, raters)
        if not as_json:
            from cagsr.rating.table import rating_table

            console.print(rating_table(summary, console.width), soft_wrap=True)
        return print_json(summary, as_json)
    if raters is None:
        raise InputError("cagsr rate needs --raters NAME,NAME: a link is made for each. Or --export.")
    chosen = {"mode": mode, "items": items, "systems": systems, "seed": seed}
    with open_rating(
        directory, raters, host=host, port=port, open_to_network=open_to_network, **chosen
    ) as rating:
        if as_json:
            print_result(json.dumps(rating.links))
        for line in rating.announcement():
            say(console, line)
        try:
            rating.serve(lambda line: say(console, line))
        except KeyboardInterrupt:
            print(f"\nstopped by Ctrl-C; {rating.kept()}; the same command goes on", file=sys.stderr)
            raise typer.Exit(130) from None


@app.command(
    cls=Command, epilog="Example: cagsr report runs/a runs/b --output both.html; while it trains: --watch"
)
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Directories of runs, comparisons or demos.")
    ],
    output: Annotated[
        Path | None, typer.Option(help="The file to write; default: report.html in the run's directory.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Serve the page to this machine, anew whenever the run moves on.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of --watch; 0: any that is free.")] = 0,
) -> None:
    """A run, or several over one another, as one HTML file: curves, comparison, candidates, attention."""
    from cagsr.report import write_report
    from cagsr.report.command import serve

    if watch and output is not None:
        raise InputError("--watch serves the page and writes no file; leave out --output.")
    if watch:
        serve(runs, port, Console())
    else:
        print_result(str(write_report(runs, output)))


@app.command(cls=Command, epilog="Example: cagsr doctor google/flan-t5-small")
def doctor(
    model: Annotated[str | None, typer.Argument(help="Directory or hub name of a model to examine.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None,
    data: Annotated[
        str | None, typer.Option(help="File whose first prompt is shown as the model reads it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Versions, devices, and what a model supports here; exit code 2 for a model that cannot be trained."""
    from cagsr.evaluation.shown_prompt import examined_prompt
    from cagsr.models.doctor import described
    from cagsr.models.doctor import doctor as examine

    _silence()
    model, data = model and expanded(model), data and expanded(data)
    report = examine(model, revision)
    if not as_json:
        console = console_for(as_json)
        found = report.get("model", {"supported": False})
        shown = (
            examined_prompt(
                str(model), revision, data, found["end_of_sequence_ids"], found["architecture"] == "causal"
            )
            if found["supported"]
            else []
        )
        for line in [*described(report), *shown]:
            say(console, line)
    print_json(report, as_json)
    demand_written()
    if not report.get("model", {}).get("supported", True):
        raise typer.Exit(UnsupportedModelError.exit_code)


@app.command(cls=Command, epilog="Example: cagsr reference > my.yaml")
def reference() -> None:
    """Every config key with its meaning, range and default, as YAML."""
    from cagsr.config import reference as keys

    print_result(keys().rstrip("\n"))


def _load(
    config: Path | None, overrides: list[str] | None, skip_invalid: bool, max_time: str | None = None
) -> Any:
    from cagsr.config import Config

    options = [*["data.skip_invalid=true"] * skip_invalid, *time_limit(max_time)]
    loaded = Config.load(config, [*(overrides or []), *options])
    _silence()  # after the config: a mistake in it is said at once
    return loaded


def _silence() -> None:
    from cagsr.io.quiet_libraries import silence_libraries

    silence_libraries()


def _print_error(message: str) -> None:
    """Print an error: one line for a program; broken between words on a terminal."""
    line = f"error: {message}"
    print(wrapped(line, get_terminal_size().columns) if sys.stderr.isatty() else line, file=sys.stderr)


def main() -> None:
    """Entry point: run the command line and exit with the exit code of `cagsr.errors`."""
    # Signals and checkers of the user's own are named by dotted path; they lie where the command is run.
    sys.path.insert(0, "")
    start_clock()
    settle_streams()
    if signal.getsignal(signal.SIGTERM) != signal.SIG_IGN:
        signal.signal(signal.SIGTERM, terminate)
    try:
        app(prog_name="cagsr")
    except Terminated:
        _print_error("stopped by SIGTERM; a run goes on with --resume")
        sys.exit(StoppedError.exit_code)
    except CagsrError as error:
        _print_error(str(error))
        sys.exit(error.exit_code)
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        _print_error("out of memory. Lower train.micro_batch or sampling.max_new_tokens.")
        sys.exit(MemoryRanOutError.exit_code)
