"""Processes of their own that start at once: forked from a server that has imported torch and cagsr.

A plain `python -m cagsr` spends seconds on imports. Here a fork server imports once, and every process is forked from
it before a single thread of torch's exists. What is read at import is therefore shared by all that are started from
one process: variables such as HF_HOME, and the seed of str hashes.
"""

import multiprocessing
import os
import runpy
import shutil
import socket
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

PRELOADED = (
    "cagsr.training.trainer",
    "cagsr.training.sft_run",
    "cagsr.evaluation.score_file",
    "cagsr.evaluation.evaluate",
    "cagsr.report.command",
    "peft",
    "transformers.models.t5.modeling_t5",
    "transformers.models.llama.modeling_llama",
    "tiny",
    "forked",
)
AT_IMPORT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONPATH": os.pathsep.join(sys.path),
}
"""Variables while the fork server imports; the first three hold for every process too."""

# With its first model transformers compiles a thousand patterns of names: once here, not in every process.
get_checkpoint_conversion_mapping("t5")

_forked = multiprocessing.get_context("forkserver")
_forked.set_forkserver_preload(list(PRELOADED))


class Started:
    """A process that was started; its output can be read while it goes on, and after its end."""

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

    @property
    def ended(self) -> bool:
        return self._process.exitcode is not None

    def wait(self, timeout: float = 120) -> int:
        """The exit code, negative for the signal that killed it. After ``timeout`` seconds: killed, TimeoutError."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self.kill()
            raise TimeoutError(f"it went on after {timeout} s; it last said: {(self.out + self.err)[-300:]}")
        return self._process.exitcode

    def kill(self) -> None:
        """`kill -9`, and wait until it is gone. Nothing happens to one that has ended."""
        self._process.kill()
        self._process.join()


def start(function: Callable[[], object], cwd: Path, env: Mapping[str, str] | None = None) -> Started:
    """Call ``function``, one of a module (or a ``partial`` of one), in a process of its own, in ``cwd``.

    ``env`` is added to this process's variables. The exit code is 0, that of a SystemExit, or 1 with a traceback.
    """
    directory = Path(tempfile.mkdtemp(prefix="forked-"))
    for name in ("out", "err"):
        (directory / name).touch()
    variables = {**os.environ, **AT_IMPORT, "PYTHONPATH": os.environ.get("PYTHONPATH", ""), **(env or {})}
    process = _forked.Process(target=_call, args=(function, cwd, variables, directory), daemon=True)
    with _variables(AT_IMPORT):  # for the fork server, which starts with the first process
        process.start()
    return Started(process, directory)


def start_two(
    function: Callable[[], object], cwd: Path, env: Mapping[str, str] | None = None
) -> tuple[Started, Started]:
    """Call ``function`` in two processes with the variables that a launcher gives, so that they see each other."""
    one, other = start_several(2, function, cwd, env)
    return one, other


def start_several(
    count: int, function: Callable[[], object], cwd: Path, env: Mapping[str, str] | None = None
) -> list[Started]:
    """`start_two` of any number."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    size = str(count)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    return [
        start(function, cwd, {**(env or {}), **shared, "RANK": rank, "LOCAL_RANK": rank})
        for rank in map(str, range(count))
    ]


def wait_for_both(started: Sequence[Started], timeout: float = 120) -> None:
    """All must end with 0; if one does not, the others are not left behind waiting for it."""
    try:
        codes = [process.wait(timeout) for process in started]
        assert codes == [0] * len(started), "\n".join(process.err[-3000:] for process in started)
    finally:
        for process in started:
            process.kill()


def cagsr(arguments: Sequence[object], before: Callable[[], object] | None = None) -> None:
    """``cagsr ARGUMENTS``, after ``before``: to be started in a process of its own."""
    from cagsr.cli.main import main

    sys.argv = ["cagsr", *map(str, arguments)]
    if before is not None:
        before()
    main()


def module(name: str, arguments: Sequence[object]) -> None:
    """``python -m NAME ARGUMENTS``: to be started in a process of its own."""
    sys.argv = [name, *map(str, arguments)]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def forget(*packages: str) -> None:
    """In a process of its own: what is imported of these next is imported anew, as in a fresh interpreter."""
    for name in [*sys.modules]:
        if name.split(".")[0] in packages:
            del sys.modules[name]


def _call(function: Callable[[], object], cwd: Path, variables: dict[str, str], directory: Path) -> None:
    for stream, name in ((sys.stdout, "out"), (sys.stderr, "err")):
        file = os.open(directory / name, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, stream.fileno())
        os.close(file)
        assert isinstance(stream, TextIOWrapper)
        stream.reconfigure(line_buffering=True)  # what was said before a kill is kept
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(variables)
    function()


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    kept = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)
