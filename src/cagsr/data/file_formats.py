"""Formats of data files: JSON lines, JSON, separated values, Parquet and Arrow, each parsed to rows.

What is recognised in a file and not told by its name (encoding, separator, where in a document the rows are) is a note
of its rows, which commands print. A row that cannot be read stays in the list with its problem, so that it is refused
or counted by name later and never lost in silence.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cagsr.errors import InputError

__all__ = ["Row", "binary_columns", "first_line", "left_alone", "noted", "parse", "rows_of"]

DEEPEST = 64
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
# A first record, which may hold line ends within quotes; and what a spreadsheet writes above it.
FIRST_RECORD = re.compile(r'(?:"[^"]*"|[^"\r\n])*')
SEPARATOR_LINE = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)


@dataclass(frozen=True)
class Row:
    """One row of data: its columns, its place (``data.jsonl row 17``), and the reason why it cannot be used, if any.

    ``notes`` say what was recognised in order to read it, alike for all rows of a file. ``part`` is the number of its
    data set among several, ``weight`` that data set's (`schema.Part`), and ``columns`` those that it names for prompt
    and reference; None: those of ``data``.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    place: str = ""
    problem: str | None = None
    notes: tuple[str, ...] = ()
    part: int = 0
    weight: float | None = None
    columns: tuple[str | None, str | None] | None = None


def rows_of(values: Iterable[Mapping[str, Any]], name: str) -> list[Row]:
    """Rows of data in memory, such as a generated task's; row numbers start at 1."""
    return [Row(row, f"{name} row {number}") for number, row in enumerate(values, start=1)]


def parse(content: bytes, name: str) -> list[Row]:
    """Rows of a file's content, by the ending of its name without ``.gz`` (`config.schema.FILES`).

    Row numbers are lines of the file (JSON lines), rows of the sheet with its header as row 1 (separated
    values), or count from 1.

    Raises InputError for a content that cannot be read at all.
    """
    ending = name.lower().removesuffix(".gz").rpartition(".")[2]
    if ending in ("parquet", "arrow"):
        table = _arrow(content, name, ending)
        left = binary_columns(table.schema)
        return noted(rows_of(table.drop_columns(left).to_pylist(), name), *left_alone(left))
    content, notes = _utf8(content, name)
    if ending == "json":
        rows = _json(content, name)
    elif ending in ("jsonl", "ndjson"):
        rows = _json_lines(content, name)
    else:
        rows = _separated(content, name, "\t" if ending == "tsv" else ",")
    return noted(rows, *notes)


def noted(rows: list[Row], *notes: str) -> list[Row]:
    """The rows with these further notes."""
    return [replace(row, notes=row.notes + notes) for row in rows] if notes else rows


def _utf8(content: bytes, name: str) -> tuple[bytes, tuple[str, ...]]:
    """The content in UTF-8 without a byte-order mark, and a note of another encoding, if it has one."""
    encoding = json.detect_encoding(content[:4])
    if encoding in ("utf-8", "utf-8-sig"):
        return content.removeprefix(b"\xef\xbb\xbf"), ()
    try:
        return content.decode(encoding).removeprefix("\ufeff").encode(), (f"encoding {encoding.upper()}",)
    except UnicodeDecodeError:
        raise InputError(f"{name} is neither UTF-8 nor {encoding.upper()}. Save the file as UTF-8.") from None


# JSON ------------------------------------------------------------------------------------------------------


class _InvalidJSONError(Exception):
    """JSON that cannot be read, with the reason in words."""


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _InvalidJSONError(f"invalid JSON: the key {twice!r} twice")
    return values


def _loaded(content: bytes) -> Any:
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=_each_once)
    except UnicodeDecodeError as error:
        raise _InvalidJSONError(f"byte {error.start + 1} is not UTF-8; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if error.lineno > 1 else ""
        raise _InvalidJSONError(f"invalid JSON at {line}column {error.colno}: {error.msg}") from None
    except (ValueError, RecursionError):
        raise _InvalidJSONError("invalid JSON: a number too long, or brackets too deep") from None


def _json_lines(content: bytes, name: str) -> list[Row]:
    if content.lstrip().startswith(b"["):
        try:
            return _document(content, name)
        except _InvalidJSONError:
            pass  # lines, each of which says what is wrong with it
    rows = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            place = f"{name} row {number}"
            try:
                rows.append(_object(_loaded(line), place))
            except _InvalidJSONError as error:
                rows.append(Row(place=place, problem=str(error)))
    return rows


def _object(values: Any, place: str) -> Row:
    if not isinstance(values, dict):
        return Row(place=place, problem=f"expected a JSON object, got {type(values).__name__}")
    if _is_deep(values):
        return Row(place=place, problem=f"brackets nested more than {DEEPEST} deep")
    return Row(values, place)


def _is_deep(values: Any) -> bool:
    """Whether values are nested so deep that a recursive pass over a row, such as printing, could exceed a limit."""
    level = [values]
    for _ in range(DEEPEST):
        nested = [item for item in level if isinstance(item, dict | list)]
        level = [inner for item in nested for inner in (item.values() if isinstance(item, dict) else item)]
        if not level:
            return False
    return any(isinstance(item, dict | list) for item in level)


def _json(content: bytes, name: str) -> list[Row]:
    """Rows of a document, or of JSON lines under a document's name."""
    try:
        return _document(content, name) if content.strip() else []
    except _InvalidJSONError as error:
        rows = _json_lines(content, name)
        if rows[0].problem:
            raise InputError(f"{name}: {error}. Correct the file.") from None
        return noted(rows, "JSON lines: an object a line")


def _document(content: bytes, name: str) -> list[Row]:
    """Rows of a JSON document: a list, a list under a key, or one row."""
    document = _loaded(content)
    if isinstance(document, list):
        return [_object(values, f"{name} row {number}") for number, values in enumerate(document, start=1)]
    if not isinstance(document, dict):
        raise InputError(f"{name}: expected a list of rows, got {type(document).__name__}")
    tables = [key for key, value in document.items() if _is_table(value)]
    if len(tables) == 1:
        rows = [
            _object(values, f"{name} {tables[0]} row {number}")
            for number, values in enumerate(document[tables[0]], start=1)
        ]
        return noted(rows, f"rows under the key {tables[0]!r}")
    if tables:
        raise InputError(
            f"{name}: rows are under several keys: {', '.join(map(repr, tables))}. Save one as a list."
        )
    if all(isinstance(value, list | dict) and not _is_conversation(value) for value in document.values()):
        raise InputError(
            f"{name}: expected a list of rows, [{{...}}, ...], got columns or an empty table under "
            f"{', '.join(map(repr, document)) or 'no key'}. Save rows (pandas: to_json(orient='records'))."
        )
    return [_object(document, f"{name} row 1")]


def _is_table(value: Any) -> bool:
    objects = isinstance(value, list) and value and all(isinstance(item, dict) for item in value)
    return bool(objects) and not _is_conversation(value)


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list) and any(
        isinstance(item, dict) and {"role", "from"} & item.keys() for item in value
    )


# Separated values and tables ---------------------------------------------------------------------------------


def _decoded(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(f"{name}:{line} is not UTF-8. Save the file as UTF-8.") from None


def _separated(content: bytes, name: str, usual: str) -> list[Row]:
    text = _decoded(content, name)
    declared = SEPARATOR_LINE.match(text)
    separator = declared[1] if declared else _separator(text, usual)
    # The default refuses cells beyond 131,072 characters; a cell can hold no more than the file. Never lowered:
    # the limit is everybody's, and importing a package may read its own table.
    csv.field_size_limit(max(len(text), csv.field_size_limit()))
    lines = io.StringIO(text[declared.end() :] if declared else text, newline="")
    reader = csv.reader(lines, strict=True, delimiter=separator)
    above = 1 if declared else 0
    try:
        rows = _under_header(reader, name, separator, above)
    except csv.Error as error:
        raise InputError(f"{name}:{reader.line_num + above} broken CSV: {error}") from None
    named = SEPARATORS.get(separator, repr(separator))
    return rows if separator == usual else noted(rows, f"columns separated by {named}")


def _separator(text: str, usual: str) -> str:
    """The separator that the header has most often outside quotes; ``usual`` where it has none."""
    first = FIRST_RECORD.match(text)
    header = re.sub(r'"[^"]*"', "", first[0] if first else "")
    found = "\t" if "\t" in header else max(",;|", key=header.count)
    return found if found in header else usual


def _under_header(reader: Any, name: str, separator: str, above: int) -> list[Row]:
    rows: list[Row] = []
    # Rows without a cell above the header are skipped.
    skipped, header = next(((row, cells) for row, cells in enumerate(reader) if cells), (0, []))
    above += skipped
    spaced, header = header, [name.strip(" ") for name in header]
    notes = ("spaces around the names of columns are left out",) * (spaced != header)
    if len(set(header)) < len(header):
        raise InputError(
            f"{name} row {1 + above}: the header names a column twice: {', '.join(header)}. Rename one, or write "
            "a header line above the data."
        )
    for number, cells in enumerate(reader, start=2 + above):
        place = f"{name} row {number}"
        if len(cells) == len(header):
            rows.append(Row(dict(zip(header, cells, strict=True)), place))
        elif cells:
            quote = f"; quote a cell that holds {separator!r}" if len(cells) > len(header) else ""
            rows.append(Row(place=place, problem=f"{len(cells)} cells under {len(header)} columns{quote}"))
    return noted(rows, *notes)


def binary_columns(schema: Any) -> list[str]:
    """The columns of an Arrow schema that hold bytes, alone or inside a structure: images, audio and the like."""
    import pyarrow

    types = pyarrow.types
    of_bytes = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_binary_view)

    def holds_bytes(kind: Any) -> bool:
        if types.is_dictionary(kind):
            return holds_bytes(kind.value_type)
        found = any(holds(kind) for holds in of_bytes)
        return found or any(holds_bytes(kind.field(inner).type) for inner in range(kind.num_fields))

    return [field.name for field in schema if holds_bytes(field.type)]


def left_alone(columns: list[str]) -> tuple[str, ...]:
    """A note of columns that are not read; none where there are none."""
    return (f"columns left alone, as they hold no text: {', '.join(columns)}",) if columns else ()


def _arrow(content: bytes, name: str, ending: str) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        if ending == "parquet":
            return pyarrow.parquet.read_table(io.BytesIO(content))
        # datasets writes streams; other programs write files with a footer too.
        is_file = content.startswith(b"ARROW1")
        opened = (pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream)(io.BytesIO(content))
        return opened.read_all()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InputError(
            f"{name}: damaged {ending.title()} file, save it again: {first_line(error)}"
        ) from None


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its kind where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
