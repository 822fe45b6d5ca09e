"""A real vLLM server as a process: started, waited for, killed. Its environment is one of its own, `.venv-vllm`."""

import json
import os
import signal
import socket
import subprocess
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2

PYTHON = Path(__file__).parents[1] / ".venv-vllm" / "bin" / "python"
PATIENCE = 600
"""Seconds in which a server must be up."""

VARIABLES = {
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
FLAGS = {
    "--enable-lora": "",
    "--logprobs-mode": "processed_logprobs",
    "--dtype": "float32",
    "--enforce-eager": "",
}


@cache
def _forks() -> subprocess.Popen[str]:
    """The process that servers are forked from; it ends with this one, which holds its standard input."""
    forks = subprocess.Popen(
        [PYTHON, Path(__file__).with_name("vllm_forks.py")],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert forks.stdout is not None
    while (line := forks.stdout.readline()) != "ready\n":
        if not line:
            raise RuntimeError(
                "vLLM cannot be imported: .venv-vllm/bin/python proofs/vllm_forks.py tells why"
            )
    return forks


class Server:
    """Serves the model of a directory within a ``with``.

    ``flags`` and ``variables`` are on top of those that training needs; None takes one away.
    """

    def __init__(
        self,
        model: str | Path,
        log: Path,
        flags: dict[str, str | None] | None = None,
        variables: dict[str, str | None] | None = None,
    ) -> None:
        self.model, self.log = str(model), log
        self.flags, self.variables = FLAGS | (flags or {}), VARIABLES | (variables or {})
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx2.Client(base_url=self.url, timeout=PATIENCE)
        self._process: int | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> float:
        """Start it, and return when it has answered once; the seconds that this took."""
        forks = _forks()
        began = time.monotonic()
        cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        variables = self.variables | {"VLLM_CPU_OMP_THREADS_BIND": cores}
        flags = [
            word for name, value in self.flags.items() if value is not None for word in (name, value) if word
        ]
        asked = {
            "arguments": ["--model", self.model, "--host", "127.0.0.1", "--port", str(self.port), *flags],
            "variables": {name: value for name, value in variables.items() if value is not None},
            "log": str(self.log),
        }
        assert forks.stdin is not None
        assert forks.stdout is not None
        print(json.dumps(asked), file=forks.stdin, flush=True)
        self._process = int(forks.stdout.readline())
        while not self._up():
            if not self._alive():
                raise RuntimeError(f"the server ended: {self._last()}")
            if time.monotonic() - began > PATIENCE:
                raise RuntimeError(f"the server is not up after {PATIENCE} s: {self._last()}")
            time.sleep(0.5)
        self.http.get("/server_info")  # the first of each kind takes seconds
        self.post("/v1/completions", {"model": self.model, "prompt": [[3, 4]], "max_tokens": 2})
        return time.monotonic() - began

    def kill(self) -> None:
        """SIGKILL to all of its processes."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process, signal.SIGKILL)
            while self._alive():
                time.sleep(0.01)
            self._process = None

    def _alive(self) -> bool:
        assert self._process is not None
        try:
            os.killpg(self._process, 0)
        except ProcessLookupError:
            return False
        return True

    def post(self, route: str, body: dict[str, Any]) -> Any:
        """The JSON of an answer."""
        return self.http.post(route, json=body).json()

    def adapters(self) -> list[str]:
        """Names of the adapters that are loaded."""
        return [card["id"] for card in self.http.get("/v1/models").json()["data"] if card["parent"]]

    def _up(self) -> bool:
        try:
            return self.http.get("/health", timeout=5).status_code == 200
        except httpx2.TransportError:
            return False

    def _last(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()
        return " / ".join(line for line in lines if "Error" in line)[-600:]
