"""Real runs of `cagsr`, each a process of its own, started fast enough that a proof can do it hundreds of times.

A plain `python -m cagsr` spends seconds on imports. Here a fork server imports once, and every run is forked from
it before a single thread of torch's exists. What is read at import is therefore shared by all runs of one
process: variables such as HF_HOME, and the seed of str hashes.
"""

import multiprocessing
import os
import shutil
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

import tiny

PRELOADED = (
    "cagsr.training.trainer",
    "cagsr.training.sft_run",
    "cagsr.evaluation.score_file",
    "cagsr.evaluation.evaluate",
    "cagsr.report.command",
    "peft",
    "transformers.models.t5.modeling_t5",
    "transformers.models.llama.modeling_llama",
    "runs",
)
AT_IMPORT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONPATH": os.pathsep.join(sys.path),
}
"""Variables while the fork server imports; the first three hold for every run too."""

# With its first model transformers compiles a thousand patterns of names: once here, not in every run.
get_checkpoint_conversion_mapping("t5")

_forked = multiprocessing.get_context("forkserver")
_forked.set_forkserver_preload(list(PRELOADED))


def models(directory: Path) -> Path:
    """Save ``t5`` and ``llama`` there: random weights, two layers, the words of the task ``slots``."""
    tiny.save_models(directory)
    return directory


class Started:
    """A run that was started; its output can be read while it goes on, and after its end."""

    def __init__(self, process: ForkServerProcess, directory: Path) -> None:
        self._process, self._directory = process, directory
        weakref.finalize(self, shutil.rmtree, directory, ignore_errors=True)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def out(self) -> str:
        return (self._directory / "out").read_text(errors="replace")

    @property
    def err(self) -> str:
        return (self._directory / "err").read_text(errors="replace")

    def wait(self, timeout: float = 120) -> int:
        """The exit code, negative for the signal that killed it. After ``timeout`` seconds: killed, TimeoutError."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self.kill()
            raise TimeoutError(
                f"a run went on after {timeout} s; it last said: {(self.out + self.err)[-300:]}"
            )
        return self._process.exitcode

    def kill(self) -> None:
        """`kill -9`, and wait until it is gone. Nothing happens to a run that has ended."""
        self._process.kill()
        self._process.join()


def start(
    arguments: Sequence[object],
    cwd: Path,
    env: Mapping[str, str] | None = None,
    before: Callable[[], object] | None = None,
) -> Started:
    """Start ``cagsr ARGUMENTS`` in ``cwd``.

    ``env`` is added to this process's variables. ``before``, a function of a module (or a ``partial`` of one), is
    called in the new process ahead of the command: there a fault is planted.
    """
    directory = Path(tempfile.mkdtemp(prefix="cagsr-run-"))
    for name in ("out", "err"):
        (directory / name).touch()
    variables = {**os.environ, **AT_IMPORT, "PYTHONPATH": os.environ.get("PYTHONPATH", ""), **(env or {})}
    process = _forked.Process(
        target=_run, args=([*map(str, arguments)], cwd, variables, before, directory), daemon=True
    )
    with _variables(AT_IMPORT):  # for the fork server, which starts with the first run
        process.start()
    return Started(process, directory)


def _run(
    arguments: list[str],
    cwd: Path,
    variables: dict[str, str],
    before: Callable[[], object] | None,
    directory: Path,
) -> None:
    for stream, name in ((sys.stdout, "out"), (sys.stderr, "err")):
        file = os.open(directory / name, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, stream.fileno())
        os.close(file)
        assert isinstance(stream, TextIOWrapper)
        stream.reconfigure(line_buffering=True)  # what was said before a kill is kept
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(variables)
    sys.argv = ["cagsr", *arguments]
    from cagsr.cli.main import main

    if before is not None:
        before()
    main()


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    kept = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)
