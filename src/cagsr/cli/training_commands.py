"""Commands that train, say what that takes, and hand on what was trained: demo, sft, plan, train, export.

They import what they need when they run, so that `cagsr --help` imports no torch.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

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
from cagsr.io.places import expanded
from cagsr.io.quiet_libraries import silence_libraries
from cagsr.io.streams import print_result

__all__ = ["app"]

app = typer.Typer()


@app.command(cls=Command, epilog="Example: cagsr demo --model causal --full")
def demo(
    overrides: Overrides = None,
    model: Annotated[
        Literal["encoder-decoder", "causal", "instruct"],
        typer.Option(
            help="Which demo: a T5 or a Llama of a million parameters that ship (minutes), or the pretrained assistant "
            "SmolLM2-135M-Instruct (fetched once, 93 MB; 40 steps of about half a minute on a core)."
        ),
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
    """Train a model that leaves things out, without labels, and show how much better it became."""
    from cagsr.experiments.demo import demo as run_demo
    from cagsr.experiments.demo import rebuild

    silence_libraries()
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

    given = load(config, overrides, skip_invalid, max_time)
    console = console_for(as_json)
    outcome = run_sft(given, console, resume=resume, accept_changes=accept_changes)
    print_json(outcome, as_json, console)


@app.command(
    cls=Command, epilog="Example: cagsr plan --config my.yaml --processes 8 data.max_prompt_tokens=512"
)
def plan(
    overrides: Overrides = None,
    config: ConfigFile = None,
    processes: Annotated[
        int, typer.Option(min=1, help="How many share the work; several hold weights in shards (FSDP2).")
    ] = 1,
    as_json: Json = False,
) -> None:
    """How much memory `cagsr train` will take, by part and phase; of the model only config.json is read."""
    from cagsr.planning import plan as count
    from cagsr.planning import table

    given = load(config, overrides, skip_invalid=False)
    counted = count(given, processes)
    if not as_json:
        table.show(counted, given, console_for(as_json))
    print_json(table.as_json(counted, given), as_json)


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

    given, console = load(config, overrides, skip_invalid, max_time), console_for(as_json)
    with reported(Path(given.run.directory), console):
        trained = run_training(given, resume=resume, accept_changes=accept_changes, console=console)
    print_json(trained.outcome, as_json, console)


@app.command(cls=Command, epilog="Example: cagsr export runs/my my-model --dtype bfloat16")
def export(
    model: Annotated[
        str, typer.Argument(help="A run, its best/ or a checkpoint of it; or any model or LoRA adapter.")
    ],
    output: Annotated[Path, typer.Argument(help="A new directory, or NAME.gguf.")],
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Write the LoRA adapter alone, not merged into its base.")
    ] = False,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"],
        typer.Option(help="Type of the weights; they are merged in float32."),
    ] = "float32",
) -> None:
    """A trained model as any program loads it: safetensors, tokenizer and card, adapter merged; or GGUF."""
    from cagsr.training.export import export as write

    silence_libraries()
    print_result(str(write(expanded(model), output, adapter=adapter, dtype=dtype)))
