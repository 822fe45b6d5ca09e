"""Data sets that went wrong: sound, odd and impossible rows in every format, then a damaged file now and then."""

import csv
import gzip
import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet

from odd_values import odd_text

WORDS = ["city", "lyon", "name", "alice", "color", "red", "animal", "cat", "day", "monday", "sport", "tennis"]


@dataclass(frozen=True)
class GivenData:
    """A data set and how it is asked to be read.

    ``truth`` holds a mapping for each row that must come back as it is and None for one that must come back as bad;
    it is None as a whole where the file is damaged, so that nobody knows what its rows are.
    """

    name: str
    write: Callable[[], object]
    truth: list[Mapping[str, Any] | None] | None
    split: str = "train"
    columns: Mapping[str, str] = field(default_factory=dict)
    encoding: Mapping[str, Any] = field(default_factory=dict)
    need_reference: bool = False
    pairs: bool = False

    def settings(self) -> list[tuple[str, Any]]:
        """The same as keys of the section data."""
        found = {"source": self.name, "split": self.split, **self.columns}
        found |= {key: self.encoding[key] for key in ("max_prompt_tokens", "overlong", "skip_invalid")}
        return list(found.items())


def broken_data(random: Random) -> GivenData:
    """A data set of which something is wrong in most cases, and the options to read it with."""
    kind = random.choices(tuple(FORMATS), (40, 12, 20, 5, 10, 3))[0]
    shape = random.choices(tuple(SHAPES), (6, 3, 2))[0]
    rows = [_row(SHAPES[shape], random) for _ in range(random.choice((0, 1, 1, 2, 2, 3, 3, 5, 5, 8, 8, 20)))]
    if rows and random.random() < 0.15:
        rows += [rows[0]] * random.choice((1, 31))
    name, write, truth, split = FORMATS[kind](kind, rows, random)
    columns = (
        {}
        if random.random() < 0.8
        else {"prompt_column": random.choice(("text", "prompt", "pormpt", "messages"))}
    )
    if random.random() < 0.15:
        columns["reference_column"] = random.choice(
            ("reference", "summary", "completion", "refrence", "chosen")
        )
    return GivenData(
        name=name,
        write=write,
        truth=truth,
        split=split,
        columns=columns,
        encoding={
            "skip_invalid": random.random() < 0.6,
            "overlong": random.choice(("error", "drop", "truncate_left", "truncate_right")),
            "max_prompt_tokens": random.choice((None, None, None, 1, 2, 5, 40)),
            "distinct": random.random() < 0.4,
            **random.choice(({}, {}, {"context": 64, "new_tokens": 7}, {"context": 5, "new_tokens": 5})),
        },
        need_reference=random.random() < 0.2,
        pairs=shape == "pairs" and random.random() < 0.8,
    )


# Rows -------------------------------------------------------------------------------------------------------------


def _sound_text(random: Random) -> str:
    return " ".join(random.choices(WORDS, k=random.randint(1, 9)))


def _text(random: Random) -> str:
    return _sound_text(random) if random.random() < 0.6 else odd_text(random)


def _no_text(random: Random) -> Any:
    return random.choice(
        (None, 0, -1, 7.5, 2**70, True, [], {}, [[]], {"a": [1]}, ["hello"], [None], {"role": "user"})
    )


def _messages(random: Random) -> Any:
    roles = ("user", "assistant", "system", "user", "tool", "", "USER", "\ud800")
    turns: list[Any] = [
        {"role": random.choice(roles), "content": _text(random)}
        for _ in range(random.choice((0, 1, 1, 2, 3)))
    ]
    if random.random() < 0.6:
        turns += [{"role": "user", "content": _text(random)}, {"role": "assistant", "content": _text(random)}]
    if turns and random.random() < 0.2:
        broken = random.choice(
            ({}, {"role": "user"}, {"content": "x"}, {"role": None, "content": "x"}, "x", None, 3)
        )
        turns[random.randrange(len(turns))] = broken
    if turns and random.random() < 0.1:
        turns[0] = {"role": "user", "content": [{"type": "text", "text": "x"}]}
    return turns


def _prompt_shape(random: Random) -> dict[str, Any]:
    row = {random.choice(("prompt",) * 8 + ("text", "Prompt")): _text(random)}
    if random.random() < 0.4:
        row[random.choice(("reference", "completion", "summary"))] = _text(random)
    return row


def _messages_shape(random: Random) -> dict[str, Any]:
    return {random.choice(("messages", "messages", "prompt")): _messages(random)}


def _pairs_shape(random: Random) -> dict[str, Any]:
    if random.random() < 0.3:
        head = _messages(random)
        return {
            key: [*head, {"role": "assistant", "content": _text(random)}] for key in ("chosen", "rejected")
        }
    return {"prompt": _text(random), "chosen": _text(random), "rejected": _text(random)}


SHAPES: dict[str, Callable[[Random], dict[str, Any]]] = {
    "prompts": _prompt_shape,
    "messages": _messages_shape,
    "pairs": _pairs_shape,
}


def _row(shape: Callable[[Random], dict[str, Any]], random: Random) -> dict[str, Any]:
    row = shape(random)
    chance = random.random()
    if chance < 0.1:
        row[random.choice(tuple(row))] = _no_text(random)
    elif chance < 0.15:
        del row[random.choice(tuple(row))]
    elif chance < 0.2:
        row[odd_text(random) or "x"] = random.choice((_no_text(random), odd_text(random)))
    elif chance < 0.22:
        row[random.choice(tuple(row))] = random.choice(
            ("word " * 4000, "é" * 20000, "a" * 30000, "🎈 " * 3000)
        )
    return row


# Formats ----------------------------------------------------------------------------------------------------------

Written = tuple[str, Callable[[], object], list[Mapping[str, Any] | None] | None, str]

RAW_LINES = (
    *(
        b"{bad",
        b"[1]",
        b"3",
        b'"x"',
        b"null",
        b"NaN",
        b"",
        b"  ",
        b"\t\r",
        b"\xff\xfe",
        b"\x00",
        b"[" * 100_000,
    ),
    *(b'{"prompt": "x"', b'{"prompt": "x"}}', b"{'prompt': 'x'}", b'{"prompt": "\xe9"}', b'{"a":' * 50_000),
    *(
        b'{"prompt": "a", "prompt": "b"}',
        b'{"prompt": ' + b"9" * 5000 + b"}",
        b'{"prompt": "a\x01b"}',
        b"\xef\xbb\xbf{}",
    ),
    *(b'{"prompt": "city", "x": ' + b"[" * deep + b"]" * deep + b"}" for deep in (64, 900)),
    *(b"\xe2\x80\xa8", b"\x0b\x0c", b"\x85", b"\x1c"),
)


def _json_lines(kind: str, rows: list[dict[str, Any]], random: Random) -> Written:
    plain = random.random() < 0.6
    lines: list[bytes] = []
    truth: list[Mapping[str, Any] | None] = []
    for row in rows:
        line = json.dumps(row, ensure_ascii=plain).encode("utf-8", "surrogatepass")
        lines.append(line)
        # Escapes of two halves that stand side by side are one character; a half in UTF-8 is none.
        truth.append(json.loads(json.dumps(row)) if plain or _is_utf8(line) else None)
        if random.random() < 0.06:
            raw = random.choice(RAW_LINES)
            lines.append(raw)
            truth += [None] if raw.strip() else []
    newline = random.choice((b"\n", b"\n", b"\n", b"\r\n", b"\n\n"))
    content = random.choice((b"", b"", b"", b"\xef\xbb\xbf")) + newline.join(
        [*lines, b""] if random.random() < 0.8 else lines
    )
    return _file(kind, content, truth, random)


def _csv(kind: str, rows: list[dict[str, Any]], random: Random) -> Written:
    header = list(dict.fromkeys(key for row in rows for key in row)) or random.choice(([], ["prompt"]))
    cells = [[str(row.get(key, "")) for key in header] for row in rows]
    truth: list[Mapping[str, Any] | None] = [dict(zip(header, row, strict=True)) for row in cells]
    for place in range(len(cells)):
        if random.random() < 0.04:
            cells[place] = random.choice(
                ([*cells[place], "more"], ["one"] * (len(header) + 2), cells[place][:-1] or ["", ""])
            )
            truth[place] = None
    text = io.StringIO(newline="")
    # The writer quotes a carriage return only where lines end with one.
    end, quoting = random.choice(
        (("\n", csv.QUOTE_ALL), ("\r\n", csv.QUOTE_ALL), ("\r\n", csv.QUOTE_MINIMAL))
    )
    csv.writer(text, quoting=quoting, lineterminator=end).writerows([header, *cells])
    content = text.getvalue().encode("utf-8", "surrogatepass")
    mark = random.choice((b"", b"\xef\xbb\xbf"))
    return _file(kind, mark + content, truth if _is_utf8(content) else None, random)


def _is_utf8(content: bytes) -> bool:
    return b"\xed" not in content or not re.search(b"\xed[\xa0-\xbf]", content)


def _columns(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with every column of one type, as a table has them: texts, conversations, or numbers."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    table = [dict.fromkeys(names) | row for row in rows]
    for name in names:
        values = [row[name] for row in table if row[name] is not None]
        turns = all(isinstance(value, list) and all(map(_is_turn, value)) for value in values)
        numbers = all(type(value) is int and abs(value) < 2**60 for value in values)
        for row in table:
            if row[name] is not None and not turns and not numbers:
                row[name] = str(row[name]).encode("utf-8", "replace").decode()
    # datasets ends a name at its first NUL.
    return [
        {name.encode("utf-8", "replace").decode().replace("\0", ""): row[name] for name in names}
        for row in table
    ]


def _is_turn(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"role", "content"}
        and all(_is_writable(v) for v in value.values())
    )


def _is_writable(value: Any) -> bool:
    return isinstance(value, str) and value.isascii()


def _parquet(kind: str, rows: list[dict[str, Any]], random: Random) -> Written:
    table = _columns(rows)
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), sink)
    return _file(kind, sink.getvalue().to_pybytes(), list(table), random)


def _directory(kind: str, rows: list[dict[str, Any]], random: Random) -> Written:
    table, asked = _columns(rows), random.choice(("train", "train", "trian"))
    splits, damaged = random.random() < 0.5, random.random() < 0.3

    def write() -> None:
        datasets.disable_progress_bars()
        made = datasets.Dataset.from_list(table)
        (datasets.DatasetDict({"train": made}) if splits else made).save_to_disk("directory")
        if damaged:
            broken = random.choice([path for path in sorted(Path("directory").rglob("*")) if path.is_file()])
            broken.write_bytes(
                random.choice((b"", b"{}", b"null", random.randbytes(40), broken.read_bytes()[:-7]))
            )

    return "directory", write, None if damaged else list(table), asked


def _file(kind: str, content: bytes, truth: list[Mapping[str, Any] | None] | None, random: Random) -> Written:
    name = random.choice(("d",) * 8 + ("a b", "é🎈", "d\u202e", "d\x1b[2J", "\udcff")) + kind
    if kind.endswith(".gz"):
        content = gzip.compress(content, 1, mtime=0)
    if random.random() < 0.15:
        content, truth = random.choice(DAMAGES)(content, random), None
    return name, lambda: Path(name).write_bytes(content), truth, "train"


def _flipped(content: bytes, random: Random) -> bytes:
    changed = bytearray(content or b"x")
    for _ in range(random.randint(1, 4)):
        changed[random.randrange(len(changed))] = random.randrange(256)
    return bytes(changed)


DAMAGES: tuple[Callable[[bytes, Random], bytes], ...] = (
    _flipped,
    _flipped,
    lambda content, random: content[: random.randrange(len(content) + 1)],
    lambda content, random: content + random.randbytes(20),
    lambda content, random: content + content,
    lambda content, random: random.randbytes(random.randrange(200)),
    lambda content, random: b"",
    lambda content, random: gzip.compress(content),
    lambda content, random: content.decode("utf-8", "replace").encode("utf-16"),
    lambda content, random: content.replace(b"\n", b"\r"),
    lambda content, random: content.replace(b'"', b"", 1),
    lambda content, random: content.replace(b",", b"\x00"),
)

FORMATS: dict[str, Callable[[str, list[dict[str, Any]], Random], Written]] = {
    ".jsonl": _json_lines,
    ".jsonl.gz": _json_lines,
    ".csv": _csv,
    ".csv.gz": _csv,
    ".parquet": _parquet,
    "directory": _directory,
}
