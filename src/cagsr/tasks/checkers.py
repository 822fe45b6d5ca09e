"""Choice of a run's checker: the task's own, a built-in one by name, or the user's by its dotted path."""

import importlib

from cagsr.config.schema import Data
from cagsr.errors import InputError, closest
from cagsr.tasks import CHECKERS, TASKS
from cagsr.tasks.task import Checker

__all__ = ["demand_checker", "find_checker"]


def find_checker(data: Data) -> Checker | None:
    """The checker that ``data.checker`` names, else the task's; None where there is neither. Raises InputError."""
    name = data.checker or data.task
    if name is None:
        return None
    known = {**TASKS, **CHECKERS}
    if name in known:
        return known[name]
    if "." not in name:
        raise InputError(
            f"data.checker: no checker {name!r}{closest(name, known)}; "
            "one of your own is named by its path, package.module.name"
        )
    module, _, attribute = name.rpartition(".")
    try:
        checker = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a module of the user's own may raise anything
        raise InputError(
            f"data.checker: no checker {name!r} ({type(error).__name__}: {error}); correct its path"
        ) from error
    demand_checker(f"data.checker: {name}", checker)
    return checker


def demand_checker(what: str, checker: object) -> None:
    """Raises InputError, beginning with ``what``, for an object without the methods of a checker."""
    if not all(callable(getattr(checker, method, None)) for method in ("check", "quality")):
        raise InputError(
            f"{what} is of type {type(checker).__name__}, which has no methods check and quality; "
            "name an object that has both"
        )
