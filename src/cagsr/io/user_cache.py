"""The user's cache: what can be made again, and need not be, kept in directories that may be removed at any time."""

import os
from pathlib import Path

__all__ = ["user_cache"]


def user_cache(name: str) -> Path:
    """The directory of this name in the package's part of the user's cache (``$XDG_CACHE_HOME``, else ``~/.cache``).

    A relative ``$XDG_CACHE_HOME`` counts as none, as its specification has it: it would be another place for a command
    that is typed in another directory.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    return Path(given if os.path.isabs(given) else os.path.expanduser("~/.cache"), "cagsr", name)
