"""Every key of a config in one YAML file: its meaning, what is expected, its default."""

import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from cagsr.config.loading import Config
from cagsr.config.messages import expected, section_of

__all__ = ["reference"]

# Width of the comments, also in a terminal of 80 columns.
LINE = 79


def reference() -> str:
    """Every key with its meaning, its range and its default, as a YAML file that may be copied from."""
    return "\n".join(_lines(Config, {}, "")) + "\n"


def _lines(model: type[BaseModel], defaults: Mapping[str, Any], indent: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner = section_of(field)
        default = defaults.get(name, field.get_default(call_default_factory=True))
        yield _comment(str(field.description), indent)
        if isinstance(default, BaseModel) and inner:
            yield f"{indent}{name}:"
            yield from _lines(inner, dict(default), indent + "  ")
            continue
        yield _comment(f"Expected: {expected(field)}.", indent)
        if inner and default is None:
            yield f"{indent}{name}: null"
            for line in "\n".join(_lines(inner, {}, indent + "  ")).split("\n"):
                yield f"{indent}#{line.removeprefix(indent)}"
        elif field.is_required():
            yield f"{indent}{name}:"
        else:
            yield f"{indent}{name}: {json.dumps(default)}"


def _comment(text: str, indent: str) -> str:
    lead = f"{indent}# "
    return textwrap.fill(
        text,
        LINE,
        initial_indent=lead,
        subsequent_indent=lead,
        break_long_words=False,
        break_on_hyphens=False,
    )
