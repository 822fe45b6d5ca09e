"""Readers of data rows: a file of any format, a directory saved by ``datasets``, or a hub data set."""

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, cast

from cagsr.config.schema import FILES, IN_MEMORY
from cagsr.data.file_formats import Row, binary_columns, first_line, left_alone, noted, parse, rows_of
from cagsr.errors import InputError, closest
from cagsr.io.places import expanded, files_named

__all__ = ["Row", "read", "rows_of", "rows_of_dataset"]

TEXT_TO_JSONL = (
    "import json, sys; [print(json.dumps({'prompt': line.strip()})) for line in sys.stdin if line.strip()]"
)
MENDS = {
    ".txt": f'. A prompt a line is made JSONL by: python -c "{TEXT_TO_JSONL}" < FILE.txt > FILE.jsonl',
    **dict.fromkeys((".xlsx", ".xls", ".ods"), ". Save the sheet as CSV UTF-8"),
}


def read(
    source: str,
    split: str = "train",
    config_name: str | None = None,
    revision: str | None = None,
    first: int | None = None,
) -> list[Row]:
    """Read all rows of a file, of files that match a pattern, of a ``datasets`` directory or of a hub data set.

    `file_formats.parse` says how the rows of a file are numbered; others count from 1. ``split`` concerns
    directories and hub data sets, ``config_name`` and ``revision`` only the latter, of which only the ``first`` rows
    are fetched, if a number is given.

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
        return rows_of_dataset(_directory(source, split), source)
    if source.lower().endswith(FILES):
        names = files_named(source) or [source]
        return [row for name in names for row in parse(_content(Path(name), name), name)]
    if os.path.isfile(path):
        mend = next((mend for ending, mend in MENDS.items() if source.lower().endswith(ending)), "")
        raise InputError(f"{source}: unknown format; data files end in {', '.join(FILES)}{mend}")
    return _hub(source, split, config_name, revision, first)


def rows_of_dataset(found: Iterable[Any], name: str, first: int | None = None) -> list[Row]:
    """Rows of a ``datasets`` object or another iterable of rows, up to the ``first``.

    Columns of images, audio and other binary content are left alone, and a note of the rows names them: they are not
    decoded, and what is read of a row is the same on every day and machine.
    """
    left: list[str] = []
    features: Any = getattr(found, "features", ())
    if features is None:  # a stream whose columns nobody named: each row tells its own
        found = _of_json(found, left)
    elif hasattr(features, "arrow_schema"):
        import datasets

        left = binary_columns(features.arrow_schema)
        # A stream decodes what it has before a column is removed.
        found = found.decode(False) if left and isinstance(found, datasets.IterableDataset) else found
        found = cast(Any, found).remove_columns(left)
    return noted(rows_of(islice(found, first), name), *left_alone(left))


def _of_json(found: Iterable[Any], left: list[str]) -> Iterator[Any]:
    """Each row without values that are no JSON, such as decoded images; ``left`` gets the names of their columns."""
    for row in found:
        if not isinstance(row, Mapping):  # refused by whoever asked, with its number
            yield row
            continue
        kept = {name: value for name, value in row.items() if _is_json(value)}
        left += [name for name in row if name not in kept and name not in left]
        yield kept


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _content(path: Path, name: str) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix.lower() == ".gz" else content
    except FileNotFoundError:
        raise InputError(f"{name}: no such file; correct the path") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{name}: damaged gzip file, save it again: {error}") from None
    except (OSError, ValueError) as error:  # ValueError: NUL or half a surrogate pair in the name
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{name}: cannot be read: {reason}; name a file that can") from None


def _directory(source: str, split: str) -> Iterable[Any]:
    import datasets

    try:
        found = datasets.load_from_disk(source)
    except Exception as error:  # datasets raises errors of Arrow, fsspec and json as they come
        raise InputError(
            f"{source}: not a directory that datasets' save_to_disk wrote; name one, or a file: {first_line(error)}"
        ) from None
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise InputError(f"{source}: no split {split!r}{closest(split, map(str, found))}")
        found = found[split]
    return found


def _hub(
    source: str, split: str, config_name: str | None, revision: str | None, first: int | None
) -> list[Row]:
    import datasets

    try:
        streaming = first is not None
        found = datasets.load_dataset(
            source, config_name, split=split, revision=revision, streaming=streaming
        )
        return rows_of_dataset(found, source, first)
    except Exception as error:  # the hub client raises errors of many libraries
        raise InputError(
            f"{source}: no such file or directory here, and not loaded from the hub "
            f"(split {split!r}); correct data.source: {first_line(error)}"
        ) from None
