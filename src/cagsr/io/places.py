"""Paths as people write them: ``~`` and ``$VARIABLE`` stand for what a shell puts in their place."""

import glob
import os
import re

from cagsr.errors import InputError

__all__ = ["expanded", "files_named"]

VARIABLE = re.compile(r"\$(?:\{([^}]*)\}|([A-Za-z_]\w*))")


def expanded(path: str | os.PathLike[str]) -> str:
    """``path`` with the home directory for ``~`` and each variable's value for ``$NAME`` or ``${NAME}``.

    What exists under the very name, dollar and all, is left as it is. Raises InputError naming a variable that is not
    set, or a user that there is not.
    """
    text = os.fspath(path)
    if "$" in text and not os.path.lexists(text):
        text = VARIABLE.sub(lambda found: _value(found[1] or found[2] or "", text), text)
    if text.startswith("~"):
        home = os.path.expanduser(text)
        if home.startswith("~"):
            raise InputError(f"{text!r}: there is no user {text[1:].split('/')[0]!r}; write the path out")
        text = home
    return text


def files_named(path: str) -> list[str]:
    """The file of that very name, or those whose name matches it as a pattern (``*``, ``?``, ``[...]``), in order.

    A pattern is of files in one directory.
    """
    # Not Path.is_file: it raises where a name is too long for a file.
    if os.path.isfile(path):
        return [path]
    directory, pattern = os.path.split(path)
    if not glob.has_magic(pattern) or not os.path.isdir(directory or "."):
        return []
    found = (os.path.join(directory, name) for name in glob.glob(pattern, root_dir=directory or None))
    return sorted(name for name in found if os.path.isfile(name))


def _value(name: str, text: str) -> str:
    if name not in os.environ:
        raise InputError(f"{text!r}: the variable {name!r} is not set; set it, or write the path out")
    return os.environ[name]
