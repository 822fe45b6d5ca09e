"""Generated tasks, their checkers and tokenizers. Importing this imports no torch; calling ``tokenizer`` does."""

from cagsr.config import registry
from cagsr.tasks.e2e import E2E_CHECKER
from cagsr.tasks.task import SPLITS, Check, Checker, Task, split_of
from cagsr.tasks.tokenizer import tokenizer

__all__ = ["CHECKERS", "SPLITS", "TASKS", "Check", "Checker", "Task", "split_of", "tokenizer"]

TASKS: dict[str, Task] = {name: registry.load(path) for name, path in registry.TASKS.items()}
"""Generated tasks by name."""

CHECKERS: dict[str, Checker] = {**TASKS, E2E_CHECKER.name: E2E_CHECKER}
"""Built-in checkers by their name in ``data.checker``."""
