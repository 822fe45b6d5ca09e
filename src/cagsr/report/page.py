"""Report page: one HTML file that runs no script but its own and loads nothing from the network.

What runs wrote is text to the page and never markup: the templates escape it, the script only makes text nodes of it,
and the Content-Security-Policy names the one style sheet and the one script by their hashes.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from cagsr.errors import InputError
from cagsr.io.atomic_write import reading, write_atomically
from cagsr.report.browse import browsable
from cagsr.report.curves import axes, curves
from cagsr.report.elsewhere import elsewhere
from cagsr.report.facts import differences, run_facts, settings
from cagsr.report.heads import heads_picture
from cagsr.report.histograms import histograms
from cagsr.report.pairs import before_and_after
from cagsr.report.plot import HEIGHT, WIDTH, picture
from cagsr.report.read import Run, read_run
from cagsr.report.standings import costs, headline, standings
from cagsr.report.text import visible

__all__ = ["read_runs", "render", "write_report"]

NAME = "report.html"
MARK = '<meta name="generator" content="cagsr report">'
STYLES = ("page", "comparison", "curves", "heads", "candidates", "media")
SCRIPTS = ("page", "curves", "zoom", "pairs", "candidates", "live")
# The names of the style sheet's colours and dashes for runs that are drawn over one another.
MOST_RUNS = 8


def write_report(directories: Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Write the report of one run, or of several over one another; returns where it is.

    ``output`` is by default ``report.html`` in the run's directory, for several runs in the working directory. An
    earlier report is replaced; any other file is not. Raises InputError and StorageError.
    """
    runs = read_runs(directories)
    path = Path(output) if output else Path(directories[0] if len(runs) == 1 else ".") / NAME
    if path.is_dir():
        path = path / NAME
    if not path.parent.is_dir():
        raise InputError(f"{path.parent} is no directory. Create it, or name another with --output.")
    with reading(path):
        earlier = path.read_text(encoding="utf-8", errors="replace")[:2000] if path.exists() else MARK
    if MARK not in earlier:
        raise InputError(
            f"{path} is there already and is no report of cagsr. Name another file with --output."
        )
    write_atomically(path, render(runs))
    return path


def render(runs: Sequence[Run], live: bool = False) -> str:
    """Render the page of these runs. A ``live`` one polls the server that it came from, and no other, for changes."""
    drawn = [child for run in runs for child in (run, *run.children) if child.metrics][:MOST_RUNS]
    pictures = [
        (section, [picture(chart, f"chart-{place}-{number}") for number, chart in enumerate(section.charts)])
        for place, section in enumerate(curves(drawn))
    ]
    browsed = [run for run in (*runs, *(child for run in runs for child in run.children)) if run.candidates]
    heads = [(run, run.heads) for run in runs if run.heads]
    pairs = [(run, found) for run in runs if (found := before_and_after(run))]
    data = {
        "live": live,
        "runs": [visible(run.name) for run in drawn],
        "axes": [axes(run) for run in drawn],
        "charts": {chart["id"]: chart["data"] for _, charts in pictures for chart in charts},
        "browse": browsable(browsed),
        "pairs": [{"run": visible(run.name), **found} for run, found in pairs],
    }
    style, script = _joined("style", "css", STYLES), _joined("script", "js", SCRIPTS)
    return _template().render(
        mark=Markup(MARK),
        policy=_policy(style, script, live),
        style=Markup(style),
        script=Markup(script),
        data=Markup(_json(data)),
        title=", ".join(visible(run.name) for run in runs),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        runs=[_described(run) for run in runs],
        drawn=[visible(run.name) for run in drawn],
        sections=pictures,
        histograms=histograms(drawn),
        differences=differences(runs) if len(runs) > 1 else [],
        heads=[heads_picture(found, visible(run.name), f"heads-{n}") for n, (run, found) in enumerate(heads)],
        chart={"width": WIDTH, "height": HEIGHT},
        has_candidates=bool(browsed),
        has_pairs=bool(pairs),
        live=live,
    )


@cache
def _template() -> Template:
    """The page's template; compiling it takes longer than filling it in."""
    environment = Environment(
        loader=PackageLoader("cagsr.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2")


def read_runs(directories: Sequence[str | Path]) -> list[Run]:
    """Read the runs in these directories, with names that differ. Raises InputError."""
    if not directories:
        raise InputError("cagsr report needs at least one run: cagsr report runs/NAME")
    if len(directories) > MOST_RUNS:
        raise InputError(
            f"cagsr report draws at most {MOST_RUNS} runs over one another, got {len(directories)}. Name fewer."
        )
    runs = [read_run(directory) for directory in directories]
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:  # seed-0 of two systems
            run.name = "/".join(run.path.resolve().parts[-2:])
    return runs


def _described(run: Run) -> dict[str, Any]:
    measured = elsewhere(run)  # what is wrong with it joins the problems
    return {
        "elsewhere": measured,
        "measured": visible(str(run.elsewhere.get("measured", ""))),
        "name": visible(run.name),
        "headline": headline(run),
        "facts": run_facts(run),
        "warnings": [(step, visible(message)) for step, message in run.warnings],
        "problems": [visible(problem) for one in (run, *run.children) for problem in one.problems],
        "not_drawn": [visible(name) for name in run.not_drawn],
        "tables": standings(run.summary) if run.summary else [],
        "costs": costs(run.summary.cost) if run.summary else None,
        "not_for": [
            (visible(name), visible(reason)) for name, reason in run.summary.not_for_this_data.items()
        ]
        if run.summary
        else [],
        "settings": settings(run),
        "config": visible(run.config_text),
    }


def _policy(style: str, script: str, live: bool) -> str:
    allowed = [f"style-src {_hash(style)}", f"script-src {_hash(script)}", "img-src data:"]
    allowed += ["connect-src 'self'"] if live else []
    return "; ".join(["default-src 'none'", *allowed, "base-uri 'none'", "form-action 'none'"])


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _joined(folder: str, ending: str, names: Sequence[str]) -> str:
    """Concatenate the parts of the style sheet or of the script."""
    place = resources.files("cagsr.report").joinpath(folder)
    return "\n".join(place.joinpath(f"{name}.{ending}").read_text(encoding="utf-8") for name in names)


def _json(value: Any) -> str:
    """JSON inside a script element: nothing in it can end the element or open a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
