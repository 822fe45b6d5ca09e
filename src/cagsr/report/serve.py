"""`cagsr report --watch`: HTTP server on the loopback address whose page is rendered again when the run changes.

The server reads and never writes, listens on the loopback address, and answers only requests that name it by that
address: a page elsewhere that has its own name point here (DNS rebinding) is refused.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import sha256
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock

from cagsr.errors import InputError
from cagsr.report.page import read_runs, render
from cagsr.report.read import FILES, INSIDE
from cagsr.runs.directory import HEADS, LM_EVAL

__all__ = ["Live", "files_of", "server"]

LOOPBACK = "127.0.0.1"


def files_of(path: Path) -> list[Path]:
    """The files that a report of ``path`` reads: when one of them changes, so does the report."""
    places = [path, *(place for pattern in INSIDE for place in path.glob(pattern))]
    return [file for place in places for name in (*FILES, HEADS, LM_EVAL) if (file := place / name).is_file()]


class Live:
    """Cached page of some runs, rendered again only when one of their files has changed."""

    def __init__(self, directories: Sequence[str | Path]):
        self.directories = [Path(directory) for directory in directories]
        self._lock, self._known, self._page = Lock(), "", b""
        self.page()  # a wrong directory is said before anything is served

    def state(self) -> str:
        """A fingerprint of the runs' files, which changes when one of them does."""
        stamps = []
        for file in (file for directory in self.directories for file in files_of(directory)):
            with suppress(FileNotFoundError):  # it was there a moment ago
                status = file.stat()
                stamps.append(f"{file} {status.st_size} {status.st_mtime_ns}")
        return sha256("\n".join(stamps).encode("utf-8", "surrogateescape")).hexdigest()

    def page(self) -> bytes:
        with self._lock:
            state = self.state()
            if state != self._known:
                self._page = render(read_runs(self.directories), live=True).encode()
                self._known = state
            return self._page


def server(live: Live, port: int) -> ThreadingHTTPServer:
    """HTTP server on the loopback address; ``port`` 0 takes a free one. Raises InputError where the port is taken."""

    # A class of its own for each server: what is served may differ.
    handler = type("Handler", (_Handler,), {"live": live})
    try:
        serving = ThreadingHTTPServer((LOOPBACK, port), handler)
    except OSError as error:
        raise InputError(
            f"--port {port} cannot be used: {error.strerror}. Name another, or 0 for any."
        ) from error

    handler.names = frozenset(f"{name}:{serving.server_port}" for name in (LOOPBACK, "localhost"))
    return serving


class _Handler(BaseHTTPRequestHandler):
    """Requests for the page: answered only where they name this machine and port as their host."""

    live: Live
    names: frozenset[str] = frozenset()

    def do_GET(self) -> None:
        asked = set(self.headers.get_all("Host", []))
        if not asked or asked - self.names:
            self._answer(
                HTTPStatus.FORBIDDEN, b"This report is for the machine that it runs on.\n", "text/plain"
            )
        elif self.path == "/":
            self._made(self.live.page, "text/html")
        elif self.path == "/changed":
            self._made(lambda: self.live.state().encode(), "text/plain")
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"There is one page here: /\n", "text/plain")

    def _made(self, make: Callable[[], bytes], kind: str) -> None:
        try:
            body = make()
        except InputError as error:  # the run was moved away
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, f"{error}\n".encode(), "text/plain")
        else:
            self._answer(HTTPStatus.OK, body, kind)

    def _answer(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Cross-Origin-Resource-Policy": "same-origin",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is printed of requests: the terminal belongs to the run."""
