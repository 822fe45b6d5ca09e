"""Commands that look at what is there, or ask people: rate, report, doctor, reference.

They import what they need when they run, so that `cagsr --help` imports no torch.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from cagsr.cli.options import Command, Json, console_for, print_json
from cagsr.errors import InputError, UnsupportedModelError
from cagsr.io.places import expanded
from cagsr.io.quiet_libraries import silence_libraries
from cagsr.io.streams import demand_written, print_result
from cagsr.io.terminal import say

__all__ = ["app"]

app = typer.Typer()


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

    silence_libraries()
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
