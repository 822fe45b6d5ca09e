"""A data file is read to the rows that were written into it, or refused with a row number; never to other rows.

Rows are known first: a prompt, a reference. They are written in a layout (columns, Alpaca, ShareGPT, messages, OpenAI
parts), a format, an encoding, with the separators, quotes and line ends of the programs that people save files with;
one in three files gets a slip: a cell too many, half a line, bytes of another encoding. What comes back must be what
was known, row by row, and a row that is not must say so.

An item is its seed: ``known_rows.problems(seed)`` runs it again.
"""

import csv
import gzip
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from cagsr.data.prompts import map_columns
from cagsr.data.readers import Row, read
from cagsr.errors import InputError

TITLE = "a data file is read to the rows that were written into it"
PROMISE = 19
COUNT = 20_000

PIECES = (
    *(
        "city lyon",
        "tea",
        "5",
        "3,5",
        "NA",
        "null",
        "true",
        "a;b",
        "x|y",
        "tab\there",
        'say "hi"',
        "'quoted'",
        '"',
        "a, b",
    ),
    *(
        "line\nbreak",
        "caf\u00e9",
        "\u6771\u4eac",
        "\U0001f388",
        "=1+1",
        "\u2028",
        "{}",
        "[1]",
        "#",
        " padded ",
        "\u00a0",
    ),
    *("a, b", "\u00a0", "sep=;"),
)
ENCODINGS = ("utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252")
SPEAKERS = {"user": "human", "assistant": "gpt", "system": "system"}


@dataclass(frozen=True)
class Known:
    """One row as it must be read: a prompt, a text or messages, and the reference."""

    prompt: Any
    reference: str


@dataclass(frozen=True)
class File:
    """A data file; ``damaged`` are the rows that a slip may have cost, all of them for None."""

    name: str
    content: bytes
    known: Sequence[Known]
    damaged: frozenset[int] | None
    what: str


def prove(count: int, random: Random, advance: Callable[..., None]) -> list[str]:
    """The files, out of ``count``, that were read to other rows or refused without need, each with its seed."""
    failures = []
    for _ in range(count):
        seed = random.getrandbits(48)
        found, how = _judged(seed)
        failures += [f"seed {seed}: {problem}" for problem in found]
        advance(**{how: 1})
    return failures


def figures(sums: Counter[str]) -> str:
    return f"{sums['read']:,} read whole, {sums['in part']:,} in part, {sums['refused']:,} refused"


def problems(seed: int) -> list[str]:
    """What is wrong with how the file of this seed is read."""
    return _judged(seed)[0]


def _judged(seed: int) -> tuple[list[str], str]:
    file = made(Random(seed))
    Path(file.name).write_bytes(file.content)
    try:
        rows = map_columns(read(file.name))
    except InputError as error:
        return [f"{file.what}: {problem}" for problem in _refusal(file, str(error))], "refused"
    finally:
        Path(file.name).unlink()
    found = [f"{file.what}: {problem}" for problem in _differences(file, rows)]
    return found, "in part" if any(row.problem for row in rows) else "read"


def _refusal(file: File, message: str) -> list[str]:
    """What is wrong with refusing the whole file."""
    if file.damaged == frozenset():
        return [f"a sound file is refused: {message[:200]}"]
    named = file.name in message or "column; found" in message or "data set is empty" in message
    return [] if named else [f"refused without a place: {message[:200]}"]


def _differences(file: File, rows: Sequence[Row]) -> list[str]:
    """Rows that are not those known, unless they say so."""
    if file.damaged is None:
        # Nobody knows which row is which: whatever is read must have been written, as often as that.
        known = Counter(map(repr, file.known))
        read_so = Counter(repr(_as_known(row)) for row in rows if not row.problem)
        return [f"{row} was never written" for row in read_so - known]
    if len(rows) != len(file.known):
        return [f"{len(file.known)} rows were written and {len(rows)} read"]
    wrong = []
    for number, (row, known) in enumerate(zip(rows, file.known, strict=True)):
        if row.problem and not re.search(r"row \d+$", row.place):
            wrong.append(f"{row.place!r} is no row number")
        if row.problem and number not in file.damaged:
            wrong.append(f"{row.place} is sound and is refused: {row.problem}")
        if not row.problem and _as_known(row) != known:
            wrong.append(f"{row.place} was written as {known} and read as {_as_known(row)}"[:400])
    return wrong


def _as_known(row: Row) -> Known:
    prompt = row.values["prompt"]
    if not isinstance(prompt, str):
        prompt = [{key: turn[key] for key in ("role", "content")} for turn in prompt]
    return Known(prompt, row.values.get("reference", ""))


# Files -------------------------------------------------------------------------------------------------------------


def made(random: Random) -> File:
    """A file of known rows, and which of them a slip may have cost."""
    layout, number = random.choice([*LAYOUTS]), random.choice((1, 2, 2, 3, 5))
    pairs = [LAYOUTS[layout](random) for _ in range(number)]
    known, rows = [known for known, _ in pairs], [row for _, row in pairs]
    if random.random() < 0.4:
        for row in rows:
            row[random.choice(("id", "source"))] = random.choice(PIECES)
        names = list(dict.fromkeys(name for row in rows for name in row))
        rows = [{name: row.get(name, "") for name in names} for row in rows]
    ending = random.choice(("jsonl", "ndjson", "json", "csv", "tsv"))
    if layout in NESTED and ending in ("csv", "tsv"):
        ending = "jsonl"
    text, damaged, how = FORMATS[ending](rows, random)
    encoding = random.choice(ENCODINGS)
    try:
        content = text.encode(encoding)
    except UnicodeEncodeError:
        encoding, content = "utf-8", text.encode()
    if encoding == "cp1252" and not content.isascii():
        damaged = None  # no program can tell: the rows with its bytes are refused, or all
    if encoding in ("utf-16-le", "utf-16-be") and not text[:2].isascii():
        damaged = None
    name = f"d.{ending}"
    if random.random() < 0.1:
        name, content = f"{name}.gz", gzip.compress(content, 1, mtime=0)
    return File(name, content, known, damaged, f"{layout} as {name}, {how}, {encoding}")


def _text(random: Random) -> str:
    before, after = (random.choices(PIECES, k=random.randint(0, most)) for most in (3, 2))
    return " ".join([*before, "word", *after])


def _columns(random: Random) -> tuple[Known, dict[str, Any]]:
    known = Known(_text(random), _text(random))
    return known, {"prompt": known.prompt, "reference": known.reference}


def _completions(random: Random) -> tuple[Known, dict[str, Any]]:
    known = Known(_text(random), _text(random))
    return known, {"completion": known.reference, "prompt": known.prompt}


def _alpaca(random: Random) -> tuple[Known, dict[str, Any]]:
    instruction, more, output = _text(random), random.choice(("", " ", _text(random))), _text(random)
    prompt = f"{instruction}\n\n{more}" if more.strip() else instruction
    return Known(prompt, output), {"instruction": instruction, "input": more, "output": output}


def _turns(random: Random) -> list[dict[str, Any]]:
    turns = [{"role": "system", "content": _text(random)}] if random.random() < 0.4 else []
    for _ in range(random.randint(1, 3)):
        turns += [{"role": role, "content": _text(random)} for role in ("user", "assistant")]
    return turns


def _messages(random: Random) -> tuple[Known, dict[str, Any]]:
    turns = _turns(random)
    return Known(turns[:-1], turns[-1]["content"]), {"messages": turns}


def _prompt_messages(random: Random) -> tuple[Known, dict[str, Any]]:
    turns = _turns(random)
    return Known(turns[:-1], turns[-1]["content"]), {"prompt": turns[:-1], "completion": turns[-1:]}


def _parts(random: Random) -> tuple[Known, dict[str, Any]]:
    known, row = _messages(random)
    column = []
    for turn in row["messages"]:
        cut = random.randrange(len(turn["content"]) + 1)
        parts = [{"type": "text", "text": part} for part in (turn["content"][:cut], turn["content"][cut:])]
        column.append(turn if random.random() < 0.3 else {**turn, "content": parts})
    return known, {"messages": column}


def _sharegpt(random: Random) -> tuple[Known, dict[str, Any]]:
    turns = _turns(random)
    known = Known(turns[:-1], turns[-1]["content"])
    row: dict[str, Any] = {}
    if turns[0]["role"] == "system" and random.random() < 0.5:
        row["system"] = turns[0]["content"]
        turns = turns[1:]
    spoken = [{"from": SPEAKERS[turn["role"]], "value": turn["content"]} for turn in turns]
    return known, {"conversations": spoken, **row}


LAYOUTS: dict[str, Callable[[Random], tuple[Known, dict[str, Any]]]] = {
    "columns": _columns,
    "completions": _completions,
    "Alpaca": _alpaca,
    "messages": _messages,
    "a prompt of messages": _prompt_messages,
    "parts": _parts,
    "ShareGPT": _sharegpt,
}
NESTED = ("messages", "a prompt of messages", "parts", "ShareGPT")

Written = tuple[str, frozenset[int] | None, str]


def _lines(rows: list[dict[str, Any]], random: Random) -> Written:
    lines = [json.dumps(row, ensure_ascii=random.random() < 0.5) for row in rows]
    damaged, how = frozenset[int](), "sound"
    if random.random() < 0.3:
        at = random.randrange(len(lines))
        damaged, how = frozenset({at}), f"row {at + 1} is cut off"
        lines[at] = lines[at][: random.randrange(1, len(lines[at]))]
    newline = random.choice(("\n", "\r\n", "\n\n"))
    return newline.join(lines) + random.choice(("", newline)), damaged, how


def _document(rows: list[dict[str, Any]], random: Random) -> Written:
    document: Any = rows if random.random() < 0.6 else {random.choice(("data", "rows", "train")): rows}
    if random.random() < 0.3:
        return _lines(rows, random)
    text = json.dumps(document, ensure_ascii=random.random() < 0.5, indent=random.choice((None, 2)))
    if random.random() < 0.1:
        return text[: random.randrange(1, len(text))], None, "cut off"
    return text, frozenset(), "sound"


def _separated(separators: Sequence[str]) -> Callable[[list[dict[str, Any]], Random], Written]:
    def written(rows: list[dict[str, Any]], random: Random) -> Written:
        separator, newline = random.choice(separators), random.choice(("\n", "\r\n"))
        header = list(rows[0])
        cells = [[row[name] for name in header] for row in rows]
        damaged, how = frozenset[int](), f"separated by {separator!r}"
        slip = random.random()
        at = random.randrange(len(cells))
        if slip < 0.1:
            cells[at] = random.choice(([*cells[at], "more"], cells[at][:-1]))
            damaged, how = frozenset({at}), f"{how}, {len(cells[at])} cells in row {at + 2}"
        text = io.StringIO(newline="")
        quoting = random.choice((csv.QUOTE_ALL, csv.QUOTE_MINIMAL))
        csv.writer(text, delimiter=separator, lineterminator=newline, quoting=quoting).writerows(
            [header, *cells]
        )
        content = text.getvalue()
        cut = random.randrange(1, len(content))
        # Between quotes: who cuts an open cell, or a quote that is written twice, leaves a sound file with another row.
        if 0.1 <= slip < 0.2 and quoting == csv.QUOTE_ALL and content[cut - 1] not in f'"{separator}':
            content, damaged, how = content[:cut], None, f"{how}, cut off"
        if random.random() < 0.2:
            content = f"sep={separator}{newline}{content}"
        return content + newline * random.choice((0, 0, 1, 2)), damaged, how

    return written


FORMATS: dict[str, Callable[[list[dict[str, Any]], Random], Written]] = {
    "jsonl": _lines,
    "ndjson": _lines,
    "json": _document,
    "csv": _separated((",", ",", ";", "|", "\t")),
    "tsv": _separated(("\t", "\t", ",", ";")),
}
