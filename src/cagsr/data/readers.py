"""Readers of data rows: JSONL, CSV, Parquet, a directory saved by ``datasets``, or a hub data set.

A row that cannot be read stays in the list with its problem, so that it is refused or counted by name later
and never lost in silence.
"""

import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cagsr.config.schema import FILES, IN_MEMORY
from cagsr.errors import InputError, closest
from cagsr.io.places import expanded

__all__ = ["Row", "read", "rows_of"]

DEEPEST = 64


@dataclass(frozen=True)
class Row:
    """One row of data: its columns, its place (``data.jsonl row 17``), and the reason why it cannot be used, if any."""

    values: Mapping[str, Any] = field(default_factory=dict)
    place: str = ""
    problem: str | None = None


def rows_of(values: Iterable[Mapping[str, Any]], name: str) -> list[Row]:
    """Rows of data in memory, such as a generated task's; row numbers start at 1."""
    return [Row(row, f"{name} row {number}") for number, row in enumerate(values, start=1)]


def read(
    source: str, split: str = "train", config_name: str | None = None, revision: str | None = None
) -> list[Row]:
    """Read all rows of a file, a ``datasets`` directory or a hub data set.

    Row numbers are lines of the file (JSONL), rows of the sheet with its header as row 1 (CSV), or count from
    1. ``split`` concerns directories and hub data sets, ``config_name`` and ``revision`` only the latter.

    Raises InputError when the source is missing, damaged, of an unknown format, or has no such split.
    """
    if source in IN_MEMORY:
        raise InputError(
            f"data.source: {source} was in the memory of a Python program; name a file or a data set with its rows"
        )
    source = expanded(source)
    path = Path(source)
    # Not Path.is_dir: it raises where a name is too long for a file.
    if os.path.isdir(path):
        return rows_of(_directory(source, split), source)
    if source.endswith(FILES):
        return _file(path, source)
    if os.path.isfile(path):
        raise InputError(f"{source}: unknown format; data files end in {', '.join(FILES)}")
    return rows_of(_hub(source, split, config_name, revision), source)


def _file(path: Path, name: str) -> list[Row]:
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except FileNotFoundError:
        raise InputError(f"{name}: no such file; correct the path") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{name}: damaged gzip file, save it again: {error}") from None
    except (OSError, ValueError) as error:  # ValueError: NUL or half a surrogate pair in the name
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{name}: cannot be read: {reason}; name a file that can") from None
    if ".jsonl" in path.suffixes:
        return _json_lines(content, name)
    if ".csv" in path.suffixes:
        return _csv(content, name)
    return rows_of(_parquet(content, name), name)


def _json_lines(content: bytes, name: str) -> list[Row]:
    rows = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            rows.append(_json_row(line, f"{name} row {number}"))
    return rows


class _TwiceError(Exception):
    """A key that occurs twice in one JSON object, of which the first value would be lost."""


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise _TwiceError(next(name for name in names if names.count(name) > 1))
    return values


def _json_row(line: bytes, place: str) -> Row:
    try:
        values = json.loads(line.decode("utf-8"), object_pairs_hook=_each_once)
    except UnicodeDecodeError as error:
        return Row(place=place, problem=f"byte {error.start + 1} is not UTF-8; save the file as UTF-8")
    except json.JSONDecodeError as error:
        return Row(place=place, problem=f"invalid JSON at column {error.colno}: {error.msg}")
    except _TwiceError as error:
        return Row(place=place, problem=f"invalid JSON: the key {error.args[0]!r} twice")
    except (ValueError, RecursionError):
        return Row(place=place, problem="invalid JSON: a number too long, or brackets too deep")
    if not isinstance(values, dict):
        return Row(place=place, problem=f"expected a JSON object, got {type(values).__name__}")
    if line.count(b"[") + line.count(b"{") > DEEPEST and _is_deep(values):
        return Row(place=place, problem=f"brackets nested more than {DEEPEST} deep")
    return Row(values, place)


def _is_deep(values: Any) -> bool:
    """Whether values are nested so deep that a recursive pass over a row, such as printing, could exceed a limit."""
    level = [values]
    for _ in range(DEEPEST):
        nested = [item for item in level if isinstance(item, dict | list)]
        level = [inner for item in nested for inner in (item.values() if isinstance(item, dict) else item)]
    return any(isinstance(item, dict | list) for item in level)


def _csv(content: bytes, name: str) -> list[Row]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(f"{name}:{line} is not UTF-8. Save the file as UTF-8.") from None
    # The default refuses cells beyond 131,072 characters; a cell can hold no more than the file. Never lowered:
    # the limit is everybody's, and importing a package may read its own table.
    csv.field_size_limit(max(len(text), csv.field_size_limit()))
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[Row] = []
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise InputError(
                f"{name} row 1: the header names a column twice: {', '.join(header)}. Rename one."
            )
        for number, cells in enumerate(reader, start=2):
            place = f"{name} row {number}"
            if len(cells) == len(header):
                rows.append(Row(dict(zip(header, cells, strict=True)), place))
            elif cells:
                rows.append(Row(place=place, problem=f"{len(cells)} cells under {len(header)} columns"))
    except csv.Error as error:
        raise InputError(f"{name}:{reader.line_num} broken CSV: {error}") from None
    return rows


def _parquet(content: bytes, name: str) -> list[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{name}: damaged Parquet file, save it again: {_first_line(error)}") from None


def _directory(source: str, split: str) -> Iterable[Mapping[str, Any]]:
    import datasets

    try:
        found = datasets.load_from_disk(source)
    except Exception as error:  # datasets raises errors of Arrow, fsspec and json as they come
        raise InputError(
            f"{source}: not a directory that datasets' save_to_disk wrote; name one, or a file: {_first_line(error)}"
        ) from None
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise InputError(f"{source}: no split {split!r}{closest(split, map(str, found))}")
        found = found[split]
    return found.to_list()


def _hub(
    source: str, split: str, config_name: str | None, revision: str | None
) -> Iterable[Mapping[str, Any]]:
    import datasets

    try:
        found = datasets.load_dataset(source, config_name, split=split, revision=revision)
    except Exception as error:  # the hub client raises errors of many libraries
        raise InputError(
            f"{source}: no such file or directory here, and not loaded from the hub "
            f"(split {split!r}); correct data.source: {_first_line(error)}"
        ) from None
    assert isinstance(found, datasets.Dataset)
    return found.to_list()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
