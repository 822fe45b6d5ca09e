"""Error messages for pydantic's validation errors: one line a mistake, with place, value and what was expected."""

import json
from collections.abc import Iterator, Sequence
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from cagsr.config.yaml_document import Document, KeyPath
from cagsr.errors import closest, near

__all__ = ["expected", "messages", "section_of"]

# From this similarity on a key of the same section is suggested, although another section has the very key:
# compare.seed is meant to be compare.seeds, not train.seed.
SURE = 0.8


def messages(error: ValidationError, document: Document, root: type[BaseModel]) -> list[str]:
    """One line for each mistake, in the order of the file."""
    found: dict[KeyPath, tuple[str, str]] = {}
    for detail in error.errors():
        for path, place, message in _explain(detail, document, root):
            # A union reports each of its branches; the reader wants the key once.
            found.setdefault(path, (place, message))
    # Of a union's branches the one that reached further into the value says what is wrong with it.
    for path in {other[:length] for other in found for length in range(1, len(other))} & found.keys():
        del found[path]
    # By length first, so that cfg.yaml:9 stands before cfg.yaml:10.
    lines = sorted(found.values(), key=lambda item: (len(item[0]), item[0]))
    return [f"{place} {message}" for place, message in lines]


def _explain(detail: Any, document: Document, root: type[BaseModel]) -> Iterator[tuple[KeyPath, str, str]]:
    conflicts = getattr(detail.get("ctx", {}).get("error"), "conflicts", ())
    for conflict in conflicts:
        paths = [tuple(key.split(".")) for key in conflict.keys]
        path = next((path for path in paths if path in document.places), ())
        yield (
            (*path, conflict.message),
            document.places.get(path, f"{document.name.removesuffix(':')}:"),
            conflict.message,
        )
    if conflicts:
        return
    if detail["type"] == "extra_forbidden":
        path, field = _locate(detail["loc"][:-1], root)
        key = str(detail["loc"][-1])
        section = (section_of(field) if field else None) or root
        yield (*path, key), document.place((*path, key)), _unknown(key, path, section, root)
        return
    path, field = _locate(detail["loc"], root)
    place = document.place(path)
    dotted = ".".join(str(part) for part in path)
    if field is None:
        yield path, place, str(detail["msg"])
    elif detail["type"] == "place":
        yield path, place, detail["msg"] if place == f"override {dotted}:" else f"{dotted}: {detail['msg']}"
    elif detail["type"] == "missing":
        yield path, place, f"missing key {dotted}: {field.description}"
    else:
        value = document.value(path)
        inner = section_of(field)
        wanted = _describe(inner) if inner and isinstance(path[-1], int) else expected(field)
        meant = near(value, _words(field.annotation)) if isinstance(value, str) else None
        message = f"got {_shown(value)}, expected {wanted}" + (f"; did you mean {meant!r}?" if meant else "")
        if inner and isinstance(value, str) and value.partition(":")[0] in inner.model_fields:
            message = f"got {_shown(value)}; write a space behind the colon, {value.replace(':', ': ', 1)!r}"
        yield path, place, message if place == f"override {dotted}:" else f"{dotted}: {message}"


def _unknown(key: str, path: KeyPath, section: type[BaseModel], root: type[BaseModel]) -> str:
    """Message for a key that its section does not have: the key that was meant, or the section where it belongs."""
    if "." in key:
        first, _, rest = key.partition(".")
        return (
            f"unknown key {key!r}: in a file, {rest!r} stands below {first!r}, indented, on a line of its own"
        )
    homes = [name for name, other in _sections(root) if near(key, other.model_fields, least=1)]
    if not homes or near(key, section.model_fields, least=SURE):
        return f"unknown key {key!r}{closest(key, section.model_fields)}"
    here = f" in {'.'.join(map(str, path))}" if path else ""
    return f"unknown key {key!r}{here}; it belongs to {' or '.join(homes)}"


def _sections(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """All sections below ``model`` with their dotted names."""
    for name, field in model.model_fields.items():
        inner = section_of(field)
        if inner:
            yield path + name, inner
            yield from _sections(inner, f"{path}{name}.")


def _locate(loc: tuple[str | int, ...], root: type[BaseModel]) -> tuple[KeyPath, FieldInfo | None]:
    """The key that pydantic's location points into (without the names of union branches), and its field."""
    path: KeyPath = ()
    field: FieldInfo | None = None
    model: type[BaseModel] | None = root
    for part in loc:
        if model and isinstance(part, str) and part in model.model_fields:
            field = model.model_fields[part]
            path, model = (*path, part), section_of(field)
        elif model and isinstance(part, int):
            path = (*path, part)
        elif not model:
            break
    return path, field


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The section inside a field's type: that of ``Lora | None`` or ``list[Term]``."""
    pending: list[Any] = [field.annotation]
    while pending:
        annotation = pending.pop()
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return annotation
        pending.extend(get_args(annotation))
    return None


def _words(annotation: Any) -> list[str]:
    """The values that a literal type allows."""
    if get_origin(annotation) is Literal:
        return [str(word) for word in get_args(annotation)]
    return [word for part in get_args(annotation) for word in _words(part)]


def expected(field: FieldInfo) -> str:
    """Description of what ``field`` accepts: ``an integer of at least 1 or null``."""
    return _describe(field.annotation, field.metadata)


def _describe(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """Description of what a type accepts: ``an integer from 1 to 8``."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        flat = [one for item in args[1:] for one in getattr(item, "metadata", [item])]
        return _describe(args[0], flat)
    if origin is Literal:
        return ("one of " if len(args) > 1 else "") + ", ".join(str(word) for word in args)
    if origin is list:
        return f"a list, each {_describe(args[0])}"
    if origin is not None and origin is not dict:
        return " or ".join(_describe(part) for part in args)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"a mapping with the keys {', '.join(annotation.model_fields)}"
    names = {
        int: "an integer",
        float: "a number",
        str: "text",
        bool: "true or false",
        NoneType: "null",
        dict: "a mapping",
    }
    return names[origin or annotation] + _range(metadata)


def _range(metadata: Sequence[Any]) -> str:
    bounds = {
        sign: getattr(item, name)
        for item in metadata
        for name, sign in (("gt", "above"), ("ge", "from"), ("lt", "below"), ("le", "to"))
        if getattr(item, name, None) is not None
    }
    if any(getattr(item, "min_length", None) for item in metadata):
        return " (not empty)"
    if "from" in bounds and bounds.get("to") == 10**9:
        return f" of at least {bounds['from']}"
    if set(bounds) == {"from"}:
        return f" of at least {bounds['from']}"
    if "above" in bounds and "to" in bounds:
        return f" above {bounds['above']}, at most {bounds['to']}"
    return "".join(f" {sign} {bound}" for sign, bound in bounds.items())


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
