"""YAML reader that records the line of each key, with dotted overrides on top of the file.

Only plain data is read: null, true/false, integers, numbers, text, lists, mappings. Tags, anchors and aliases
are refused, so a file can neither run code nor grow when it is read. Differs: from YAML 1.1, ``1e-4`` is a
number, and ``no``, ``off``, ``12:30`` and ``2026-01-01`` are text.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cagsr.errors import InputError
from cagsr.io.places import expanded

__all__ = ["Document", "KeyPath", "read_document", "write_document"]

KeyPath = tuple[str | int, ...]

_INTEGER = re.compile(r"[-+]?[0-9]+$")
_NUMBER = re.compile(
    r"[-+]?(?:[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+"
    r"|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
)
_DEEPEST = 32
_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012 (PyYAML's name and shape)
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        mark = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not read", problem_mark=mark)
        if self.depth == _DEEPEST:
            raise yaml.MarkedYAMLError(problem="nested too deeply", problem_mark=mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """YAML writer that quotes whatever YAML 1.1 or this module's reader would take for something other than text."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # PyYAML folds these line separators into spaces unless they are escaped.
        style = '"' if any(character in data for character in "\r\x85\u2028\u2029") else None
        return self.represent_scalar(_TAG + "str", data, style)


_Dumper.add_representer(str, _Dumper.represent_str)


for _tag, _pattern, _first in (
    ("null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", _INTEGER, list("-+0123456789")),
    ("float", _NUMBER, list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(_TAG + _tag, _pattern, _first)
    _Dumper.add_implicit_resolver(_TAG + _tag, _pattern, _first)


@dataclass
class Document:
    """The data of a YAML file plus overrides, and for each key where it was written (``cfg.yaml:3``)."""

    data: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, str] = field(default_factory=dict)
    name: str = "config"

    def place(self, path: KeyPath) -> str:
        """The place where the key at ``path`` was written, or else of a key below it, or of the nearest around it."""
        below = [place for other, place in self.places.items() if path and other[: len(path)] == path]
        if below and path not in self.places:
            return below[0]
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, self.name)

    def value(self, path: KeyPath) -> Any:
        """The value at ``path``; see `place` for where it was written."""
        found: Any = self.data
        for part in path:
            found = found[part]
        return found

    def override(self, assignment: str) -> None:
        """Set one key, ``train.learning_rate=3e-4``; the value is read as YAML and wins over the file.

        Raises InputError when there is no ``=`` or the value is broken YAML.
        """
        dotted, equals, text = assignment.partition("=")
        dotted = dotted.strip()
        keys = tuple(dotted.split("."))
        if not equals or not all(keys):
            hint = "; a file is given by --config" if assignment.endswith((".yaml", ".yml")) else ""
            raise InputError(f"override {assignment!r} is not of the form section.key=value{hint}")
        place = f"override {dotted}:"
        parsed = _parse(text, f"override {dotted} value")
        target = self.data
        for depth, key in enumerate(keys[:-1], start=1):
            if target.get(key) is None:
                target[key] = {}
            if not isinstance(target[key], dict):
                raise InputError(f"{place} {'.'.join(keys[:depth])} is not a mapping; set it whole")
            target = target[key]
        target[keys[-1]] = parsed.data
        self.places = {path: line for path, line in self.places.items() if path[: len(keys)] != keys}
        self.places[keys] = place


def read_document(path: str | Path | None, overrides: Sequence[str] = ()) -> Document:
    """Read ``path`` (or nothing), apply ``overrides``; raises InputError with file:line for each mistake."""
    document = Document()
    if path is not None:
        path = expanded(path)
        document = _parse(_read_text(path), str(path))
        if document.data is None:
            document.data = {}
        if not isinstance(document.data, dict):
            raise InputError(f"{path}:1 expected a mapping of keys, got {type(document.data).__name__}")
    problems = []
    for assignment in overrides:
        try:
            document.override(assignment)
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(problems))
    return document


def write_document(data: dict[str, Any]) -> str:
    """``data`` as YAML that ``read_document`` reads back equal."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _read_text(path: str | Path) -> str:
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; correct the path") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{path}:{line} is not UTF-8; save the file as UTF-8") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read: {reason}; name a file that can") from None


def _parse(text: str, name: str) -> Document:
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise InputError(f"{name}:{line} broken YAML: {what}") from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise InputError(
            f"{name}:{line} broken YAML: character U+{error.character:04X} is not allowed; remove it"
        ) from None
    except (ValueError, OverflowError):  # chr() of an escape such as "\\Uffffffff"
        raise InputError(
            f"{name}:1 broken YAML: an escape stands for no character; write the character itself"
        ) from None
    document = Document(name=name)
    problems: list[str] = []
    document.data = _construct(root, (), document.places, name, problems)
    if problems:
        raise InputError("\n".join(problems))
    return document


def _construct(
    node: yaml.Node | None, path: KeyPath, places: dict[KeyPath, str], name: str, problems: list[str]
) -> Any:
    if node is None:
        return None
    line = node.start_mark.line + 1
    if path:
        places.setdefault(path, f"{name}:{line}")
    if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
        first_lines: dict[str, int] = {}
        mapping = {}
        for key_node, value_node in node.value:
            key_line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                problems.append(f"{name}:{key_line} a key must be a word")
                continue
            key = key_node.value
            if key in first_lines:
                problems.append(
                    f"{name}:{key_line} duplicate key {key!r}, first on line {first_lines[key]}; remove one"
                )
                continue
            first_lines[key] = key_line
            places[(*path, key)] = f"{name}:{key_line}"
            mapping[key] = _construct(value_node, (*path, key), places, name, problems)
        return mapping
    if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
        return [
            _construct(item, (*path, index), places, name, problems) for index, item in enumerate(node.value)
        ]
    try:
        return _scalar(node)
    except ValueError as error:
        problems.append(f"{name}:{line} {error}")
        return None


def _scalar(node: yaml.Node) -> Any:
    kind, text = node.tag.removeprefix(_TAG), node.value
    if not isinstance(node, yaml.ScalarNode) or kind not in ("null", "bool", "int", "float", "str"):
        raise ValueError(f"tag {node.tag.replace(_TAG, '!!')!r} is not read; write plain values")
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        if len(text) > 20:
            raise ValueError(f"{text[:20]}... is too large")
        return int(text)
    if kind == "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("text holds a NUL or half of a surrogate pair")
    return text
