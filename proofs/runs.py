"""Real runs of `cagsr`, each a process of its own, started fast enough that a proof can do it hundreds of times."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import forked
import tiny


def models(directory: Path) -> Path:
    """Save ``t5`` and ``llama`` there: random weights, two layers, the words of the task ``slots``."""
    tiny.save_models(directory)
    return directory


def start(
    arguments: Sequence[object],
    cwd: Path,
    env: Mapping[str, str] | None = None,
    before: Callable[[], object] | None = None,
) -> forked.Started:
    """Start ``cagsr ARGUMENTS`` in ``cwd``.

    ``env`` is added to this process's variables. ``before``, a function of a module (or a ``partial`` of one), is
    called in the new process ahead of the command: there a fault is planted.
    """
    return forked.start(partial(forked.cagsr, arguments, before), cwd, env)
