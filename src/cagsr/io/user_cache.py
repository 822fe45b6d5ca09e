"""The user's cache: what can be made again, and need not be, kept in directories that may be removed at any time."""

import os
from pathlib import Path

__all__ = ["user_cache"]


def user_cache(name: str) -> Path:
    """The directory of this name in the package's part of the user's cache (``$XDG_CACHE_HOME``, else ``~/.cache``)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "cagsr", name)
