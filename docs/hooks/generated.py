"""Pages of the site that are made from the program itself, so that they cannot be out of date; none is committed."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer
import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from typer.cli import get_docs_for_click

from cagsr.cli.main import app
from cagsr.config import Config
from cagsr.config.messages import expected, section_of
from cagsr.config.registry import ESTIMATORS, POLICY_LOSSES
from cagsr.experiments.systems import find_systems

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "cagsr"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """MkDocs asks this once it knows the files of docs/."""
    for page, text in pages().items():
        files.append(File.generated(config, page, content=text))
    return files


def pages() -> dict[str, str]:
    """Page -> its Markdown."""
    return {
        "reference/commands.md": _commands(),
        "reference/config.md": _config(),
        "reference/presets.md": _presets(),
        "reference/signals.md": _signals(),
        "reference/losses.md": _losses(),
        "reference/systems.md": _systems(),
        "notebook.md": _notebook(),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
    }


def _commands() -> str:
    command = typer.main.get_command(app)
    # Typer would make HTML of our square brackets: they are metavars and no markup.
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="cagsr", title="Command line")
    # Its list of commands cuts what each does to half a line; the page's own contents name them all.
    text = re.sub(r"\*\*Commands\*\*:\n\n(\* .*\n)+\n", "", text)
    for example in ("Example: ", "Exit codes: "):
        text = text.replace(f"\n{example}", f"\n**{example.strip()}** ")
    return text


def _config() -> str:
    about = (
        "# Config keys\n\nA config is a YAML file, and dotted keys on the command line win over it "
        "(`train.steps=20`). Only where prompts come from (`data.task` or `data.source`) has no default. A key that "
        "does not exist is refused with its line and the nearest one that does. `cagsr reference` prints this page as "
        "a YAML file to copy from.\n"
    )
    return about + "\n".join(_section(Config, {}, ""))


def _section(model: type[BaseModel], defaults: Mapping[str, Any], path: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        key, inner = f"{path}{name}", section_of(field)
        default = defaults.get(name, field.get_default(call_default_factory=True))
        if not path:
            yield f"\n## {name}\n\n{field.description}\n"
        else:
            shown = "a section of its own" if isinstance(default, BaseModel) else _shown(field, default)
            yield f"`{key}`{{ #{key} .key }}\n\n:   {field.description}\n\n    {shown}\n"
        if inner:
            given = dict(default) if isinstance(default, BaseModel) else {}
            yield from _section(inner, given, f"{key}[]." if _is_list(field) else f"{key}.")


def _is_list(field: Any) -> bool:
    return "list" in str(field.annotation)


def _shown(field: Any, default: Any) -> str:
    what = expected(field)
    if field.is_required():
        return f"*{what}; must be given*{{ .range }}"
    return f"*{what}; default*{{ .range }} `{json.dumps(default)}`"


def _presets() -> str:
    found = yaml.safe_load((PACKAGE / "rewards" / "presets.yaml").read_text(encoding="utf-8"))
    source = (PACKAGE / "rewards" / "presets.yaml").read_text(encoding="utf-8")
    text = (
        "# Presets\n\n`reward.preset` names one of these, or a file of yours that looks the same. A preset is data: "
        "signals, their weights, how each is standardised before the sum (`group`, `batch`, or `none`: raw), and their "
        "options. Which to take is what [`cagsr probe`](../guides/probe.md) is for.\n"
    )
    for name, preset in found.items():
        text += f"\n## {name}\n\n{preset['about']}\n"
        if "terms" in preset:
            terms = source.split(f"\n{name}:\n")[1].split("\n  terms:\n")[1].split("\n\n")[0]
            text += f"\n```yaml\nterms:\n{terms.rstrip()}\n```\n"
    return text


def _signals() -> str:
    names = sorted(path.stem for path in (PACKAGE / "rewards" / "signals").glob("*.py"))
    text = (
        "# Signals\n\nA signal is a function `(evidence, *, options) -> [N]`: one number for each response, higher is "
        "better. Its keyword arguments are the `options` of a reward's term. In the formulas `A[t, j]` is the "
        "attention from response token t to prompt token j, `w` the salience of the prompt's tokens, `D[t, j]` what "
        "segment j explains of token t ([the method](../method.md)). [A signal of your own](../guides/own-signal.md) "
        "is named by its dotted path.\n\n"
    )
    for name in names:
        if name not in ("__init__", "ingredients"):
            text += f"::: cagsr.rewards.signals.{name}.{name}\n    options: {{heading_level: 2}}\n\n"
    return text


def _losses() -> str:
    text = (
        "# Losses and estimators\n\nWhat `algorithm.loss` and `algorithm.name` name, each with its source ([which to "
        "choose](../guides/losses.md)). Keyword arguments of a loss are its `options`.\n"
    )
    for title, known in (("Losses", POLICY_LOSSES), ("Estimators", ESTIMATORS)):
        text += f"\n## {title}\n\n"
        for name, path in known.items():
            text += f"`{name}`\n\n::: {path}\n    options: {{heading_level: 3}}\n\n"
    return text


def _systems() -> str:
    text = (
        "# Systems\n\nWhat `cagsr compare` can set side by side; `compare.systems` names some, all are the default. "
        "Every one starts from the same base and has the same prompts, sampling and budget of responses "
        "([a comparison for a paper](../guides/compare.md)).\n"
    )
    for name, system in find_systems(None, [10]).items():
        text += f"\n`{name}`\n\n:   {(system.__doc__ or '').strip()}\n"
    return text


def _notebook() -> str:
    """The notebook with what its cells said when they were last run."""
    cells = json.loads((ROOT / "examples" / "notebook.ipynb").read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            shown = data.get("text/html") or data.get("image/svg+xml")
            text = "".join(shown or output["text"])
            text = (
                text[text.find("<svg") :] if "image/svg+xml" in data else text
            )  # without the XML declaration
            parts.append(f'<div class="output">{text}</div>' if shown else f"```text\n{text}```")
    return "\n\n".join(parts) + "\n\nThe file is `examples/notebook.ipynb`; the tests run it.\n"
