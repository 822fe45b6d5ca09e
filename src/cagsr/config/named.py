"""Functions that a config names: found by name or dotted path, their options checked against the signature."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from cagsr.errors import InputError, closest

__all__ = ["checked_options", "find", "imported"]


def find(kind: str, name: str, known: Mapping[str, Any], arguments: str) -> Any:
    """Find the function ``name`` in ``known``, or import the one at a dotted path.

    ``kind`` ("signal", "policy loss") is what messages call it, and ``arguments`` what it is called with. Raises
    InputError where there is none.
    """
    if name in known:
        return known[name]
    if "." in name:
        return imported(kind, name, arguments)
    raise InputError(
        f"unknown {kind} {name!r}{closest(name, known)}; "
        "a function of your own is named by its path, package.module.function"
    )


def imported(kind: str, path: str, arguments: str) -> Any:
    """Import the function at a dotted path. Raises InputError where the path leads to none."""
    module_name, _, attribute = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a module of the user's own may raise anything
        raise InputError(
            f"{kind} {path!r}: cannot import {module_name!r}: {type(error).__name__}: {error}; "
            "the folder that holds it must be on PYTHONPATH"
        ) from error
    if not hasattr(module, attribute):
        functions = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        raise InputError(
            f"{kind} {path!r}: module {module_name!r} has no {attribute!r}{closest(attribute, functions)}"
        )
    function = getattr(module, attribute)
    if not callable(function):
        raise InputError(
            f"{kind} {path!r} is of type {type(function).__name__}, not a function of ({arguments}, **options); "
            "name one"
        )
    return function


def checked_options(
    kind: str, name: str, function: Callable[..., Any], options: Mapping[str, Any], arguments: str
) -> dict[str, Any]:
    """Check ``options`` against what ``function`` takes beside its positional ``arguments`` ("a, b"); returns them.

    Raises InputError naming the function and the option that it does not have, lacks, or cannot take.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a built-in or compiled callable that tells nothing about itself
        return dict(options)
    if not parameters:
        raise InputError(f"{kind} {name!r} takes no arguments; it must take ({arguments}, **options)")
    first = arguments.count(",") + 1
    named = {p.name: p for p in parameters[first:] if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for option in options:
        if option not in named and not takes_any:
            hint = closest(str(option), named) if named else "; it takes none"
            raise InputError(f"{kind} {name!r} has no option {option!r}{hint}")
    for option, parameter in named.items():
        if parameter.default is parameter.empty and option not in options:
            raise InputError(f"{kind} {name!r} needs its option {option!r}")
    hints = _hints(function)
    return {
        option: _checked(f"{kind} {name!r}", option, value, hints[option]) if option in hints else value
        for option, value in options.items()
    }


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except Exception:  # annotations of a user's function that do not resolve here: nothing to check against
        return {}


def _checked(named: str, option: str, value: Any, hint: Any) -> Any:
    try:
        adapter = TypeAdapter(hint, config=ConfigDict(strict=True, arbitrary_types_allowed=True))
    except PydanticSchemaGenerationError:
        return value
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise InputError(f"{named}: option {option!r} is {value!r}: {reason}") from error
