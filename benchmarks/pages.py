"""Figures and tables of the pages, filled in from the results files and held to them.

    python -m benchmarks.pages            # what does not agree, with page and line; exit code 1
    python -m benchmarks.pages --write    # fills in what the results files say

Above a paragraph (a list, a table) that quotes what was measured stands a comment with the source of every figure, in
their order:

    <!-- figures: results > e2e > no-rl > slot errors; results > e2e > cagsr-grpo > slot errors -->
    Slot errors fall from .145 to .051.

A source is a file of docs/ without its ending, then keys, then in a table the first cells of a row and a column. A cell
".051 [.043, .058]" is .051 unless `low`, `high` or `interval` (both) follows. `given` stands for a figure that is a
setting and was not measured. A figure is held to its source at the digits it is written with.

A whole table or a terminal's output stands between two comments:

    <!-- table: results > slots-t5 -->
    <!-- end -->
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.record import table
from benchmarks.table_real_page import every_task

__all__ = ["PAGES", "Problem", "fill", "fill_all", "read_sources", "unsourced"]

ROOT = Path(__file__).parents[1]
FILES = ("results", "real", "performance", "reliability", "tutorial", "plan")
PAGES = ["README.md", *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md"))]

# What is measured in this project is written so: .145, +.02, 1.072, 1.46x, 27 %, 46 s, 122 MiB.
FIGURE = re.compile(
    r"(?<![\w.,/<-])(?P<sign>[-+−±]?)"
    r"(?P<number>\.\d+|\d\.\d{3}(?!\d|\.\d)|\d+\.\d+(?=x\b)|[\d,]*\d(?:\.\d+)?(?= ?(?:%|s\b|MiB\b)))"
)
NUMBER = re.compile(r"[-+]?(?:\d[\d,]*)?\.?\d+")
FIGURES = re.compile(r"<!-- figures: (?P<sources>.*?) -->\n+(?P<text>(?:(?!\n\n).)*)", re.DOTALL)
BLOCK = re.compile(
    r"(<!-- (?P<kind>table|text): (?P<source>.*?) -->\n\n)(?:.*?\n\n)??(<!-- end -->)", re.DOTALL
)
# Numbers in code, links and tags are no figures.
CODE = re.compile(r"^```.*?^```$|`[^`\n]+`|<!--.*?-->|\]\([^)]*\)|<[^>\n]+>", re.DOTALL | re.MULTILINE)
# The level of every interval.
NO_FIGURE = {"95"}

Sources = Mapping[str, Any]


@dataclass(frozen=True)
class Problem:
    """A figure that is not what its source says, or a source that is none."""

    page: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.what}"


def read_sources(directory: Path = ROOT / "docs") -> Sources:
    return {name: results.read(directory / f"{name}.json") for name in FILES}


def fill_all(write: bool) -> list[Problem]:
    """What disagreed with the results files in any page; ``write`` mends it."""
    sources, problems = read_sources(), []
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        filled, found = fill(text, sources, page)
        problems += found
        if write and filled != text:
            (ROOT / page).write_text(filled, encoding="utf-8")
    return problems


def fill(text: str, sources: Sources, page: str) -> tuple[str, list[Problem]]:
    """The page with all figures and blocks as the sources say, and what was otherwise."""
    problems: list[Problem] = []

    def complain(place: re.Match[str], what: str) -> None:
        problems.append(Problem(page, text.count("\n", 0, place.start()) + 1, what))

    def figures(place: re.Match[str]) -> str:
        try:
            values = list(_values(place["sources"], sources))
            filled, wrong = _filled(place["text"], values)
        except LookupError as error:
            complain(place, str(error.args[0]))
            return place[0]
        for what in wrong:
            complain(place, what)
        return place[0].removesuffix(place["text"]) + filled

    def block(place: re.Match[str]) -> str:
        try:
            content = BLOCKS[place["kind"]](place["source"], sources)
            new = place[1] + (f"{content}\n\n" if content else "") + place[4]
        except LookupError as error:
            complain(place, str(error.args[0]))
            return place[0]
        if new != place[0]:
            complain(place, f"not what {place['source']} is now")
        return new

    filled = BLOCK.sub(block, FIGURES.sub(figures, text))
    return filled, problems


def unsourced(text: str, page: str) -> list[Problem]:
    """Figures of a page that stand below no comment which says where they are from."""
    prose = FIGURES.sub(_blank, BLOCK.sub(_blank, text))
    return [
        Problem(page, text.count("\n", 0, place.start()) + 1, f"{place[0]} has no source")
        for place in _figures(prose)
    ]


def _figures(text: str) -> list[re.Match[str]]:
    return [place for place in FIGURE.finditer(CODE.sub(_blank, text)) if place["number"] not in NO_FIGURE]


def _blank(place: re.Match[str]) -> str:
    """Spaces in place of what was found, so that all else stays where it is."""
    return re.sub(r"[^\n]", " ", place[0])


def _values(listed: str, sources: Sources) -> Iterator[float | None]:
    """The value of every source; None for what is given."""
    for path in (" ".join(one.split()) for one in listed.split(";")):
        if path == "given":
            yield None
        else:
            *steps, last = path.split(" > ")
            ends = {"low": [1], "high": [2], "interval": [1, 2]}.get(last)
            cell = _find(sources, steps if ends else [*steps, last], path)
            numbers = [
                float(number.replace(",", "")) for number in NUMBER.findall(str(cell).replace("-.", "-0."))
            ]
            if len(numbers) <= max(ends or [0]):
                raise LookupError(f"{path}: no such number in {cell!r}")
            yield from (numbers[end] for end in ends or [0])


def _find(sources: Any, steps: list[str], path: str) -> Any:
    """What a path leads to: through keys, then through the first cells of a row to a column."""
    for number, step in enumerate(steps):
        if isinstance(sources, Mapping) and step in sources:
            sources = sources[step]
            continue
        tables = sources.get("tables", [sources]) if isinstance(sources, Mapping) else []
        *labels, column = steps[number:]
        for one in tables:
            if column in one.get("columns", []):
                for row in one["rows"]:
                    if row[: len(labels)] == labels:
                        return row[one["columns"].index(column)]
        raise LookupError(f"{path}: there is no {' > '.join(steps[number:])!r}")
    return sources


def _filled(text: str, values: list[float | None]) -> tuple[str, list[str]]:
    found = _figures(text)
    if len(found) != len(values):
        raise LookupError(
            f"{len(found)} figures ({', '.join(one[0] for one in found)}), {len(values)} sources"
        )
    parts, wrong, end = [], [], 0
    for place, value in zip(found, values, strict=True):
        new = place[0] if value is None else _written(place["sign"], place["number"], value)
        if new != place[0]:
            wrong.append(f"{place[0]} is {new} by its source")
        parts += [text[end : place.start()], new]
        end = place.end()
    return "".join(parts) + text[end:], wrong


def _written(sign: str, number: str, value: float) -> str:
    """A value in the style that a figure is written in: its digits, its zero before the point, its kind of minus."""
    digits = len(number.partition(".")[2])
    shown = f"{abs(value):,.{digits}f}" if "," in number else f"{abs(value):.{digits}f}"
    if number.startswith("."):
        shown = shown.removeprefix("0")
    if sign and sign != "±":
        sign = "+" if value > 0 or (value == 0 and sign == "+") else ("−" if sign == "−" else "-")
    return sign + shown


def _table(source: str, sources: Sources) -> str:
    if source in BUILT:
        return BUILT[source](sources)
    part = _find(sources, source.split(" > "), source)
    return table(part["columns"], part["rows"])


def _text(source: str, sources: Sources) -> str:
    """What a terminal said."""
    lines = _find(sources, source.split(" > "), source)
    return "```text\n" + "\n".join(lines) + "\n```"


def gains(sources: Sources) -> str:
    """The README's table of a real assistant: trained, beside a better prompt and the lexical control."""
    part = sources["real"]["restaurants"]
    cells = {tuple(row[:3]): dict(zip(part["columns"], row, strict=True)) for row in part["rows"]}
    metrics = ("slot errors", "said", "invented", "wrong values", "foreign names", "tokens")
    lines = []
    for key, what in ASSISTANT.items():
        row = cells[key]
        errors = f"{row['slot errors']} {row['slot errors to no-rl'].replace('*', '')}".rstrip()
        lines.append([what, errors, *(row[metric] for metric in metrics[1:])])
    return table(["answers of", "slot errors, to the first", *metrics[1:]], lines)


ASSISTANT = {
    ("no-rl", "", "plain"): "SmolLM2-135M-Instruct",
    ("no-rl", "", "better"): "the same, asked better",
    ("attention-values", "0", "plain"): "trained by `attention-values`",
    ("values-brief", "0", "plain"): "trained by `values-brief`: that, and a price for length",
    ("lexical-brief", "0", "plain"): "trained by words copied, at the same prices (control)",
}


BUILT: dict[str, Callable[[Sources], str]] = {
    "results, every system": lambda sources: results.overview(sources["results"]),
    "results, verdicts counted": lambda sources: results.verdict_counts(sources["results"]).rstrip(),
    "results, every case": lambda sources: results.every_case(sources["results"]),
    "gains": gains,
    "real, every task": lambda sources: every_task(sources["real"]),
}
BLOCKS: dict[str, Callable[[str, Sources], str]] = {"table": _table, "text": _text}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="fill in what the results files say")
    write = parser.parse_args().write
    problems = fill_all(write)
    print(*problems, sep="\n")
    sys.exit(bool(problems and not write))


if __name__ == "__main__":
    main()
