"""Something to rate, a rating page served in this process, and raters who speak HTTP to it."""

import http.client
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from cagsr.rating.server import Session, application, make_server
from cagsr.rating.session import Rating, open_rating

WORDS = ("red", "wooden", "cheap", "old", "tiny", "glowing", "steel", "free", "new", "round", "soft")


def comparison(
    directory: Path, prompts: int, systems: Sequence[str] = ("base", "tuned"), seeds: Sequence[int] = (0,)
) -> Path:
    """A comparison's directory: ``base`` says less than the others, and is measured with the first seed only."""
    for system in systems:
        for seed in seeds[:1] if system == "base" else seeds:
            place = directory / system / f"seed-{seed}"
            place.mkdir(parents=True)
            rows = [{"prompt": prompt(n), "response": response(system, n, seed)} for n in range(prompts)]
            (place / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def prompt(number: int) -> str:
    first, second = WORDS[number % 11], WORDS[(number // 11) % 11]
    return f"describe {first} {second} thing {number}"


def response(system: str, number: int, seed: int = 0) -> str:
    asked = prompt(number).split()
    return (
        f"a {asked[1]} one" if system == "base" else f"a {asked[1]} and {asked[2]} {system} {number} {seed}"
    )


def run(directory: Path, steps: int) -> Path:
    """A run's directory: four candidates for a prompt a step, of which two are the same text."""
    directory.mkdir(parents=True)
    texts = ("one", "two", "two", "three")
    rows = [
        {"step": step, "prompt": prompt(step), "response": f"{text} at {step}", "reward": 0.0}
        for step in range(1, steps + 1)
        for text in texts
    ]
    (directory / "candidates.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


class Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """A rater's browser, as far as a server can see: it follows the link once and keeps the cookie."""

    def __init__(self, link: str, timeout: float = 30):
        parts = urlsplit(link)
        self.address, self.timeout = parts.netloc, timeout
        self._connection: http.client.HTTPConnection | None = None
        entered = self.send("GET", f"{parts.path}?{parts.query}", {"Host": self.address})
        assert entered.status == 303, entered
        self.cookie = entered.headers["set-cookie"].split(";")[0]
        self.headers = {
            "Host": self.address,
            "Origin": f"http://{self.address}",
            "Sec-Fetch-Site": "same-origin",
            "Cookie": self.cookie,
        }

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Reply:
        """Exactly these headers, and the length of the body. Raises OSError or HTTPException without a server."""
        if self._connection is None:
            host, port = self.address.rsplit(":", 1)
            self._connection = http.client.HTTPConnection(host, int(port), timeout=self.timeout)
        try:
            self._connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                self._connection.putheader(name, value)
            if body:
                self._connection.putheader("Content-Length", str(len(body)))
            self._connection.endheaders(body or None)
            reply = self._connection.getresponse()
            return Reply(reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read())
        except (OSError, http.client.HTTPException):
            self.close()
            raise

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def get(self, path: str) -> Reply:
        return self.send("GET", path, self.headers)

    def post(self, path: str, content: Any) -> Reply:
        headers = {**self.headers, "Content-Type": "application/json"}
        return self.send("POST", path, headers, json.dumps(content).encode())

    def answer(self, item: int, question: str, value: int) -> Reply:
        return self.post("/answer", {"item": item, "question": question, "value": value})


@contextmanager
def served(rating: Rating, notices: list[str] | None = None) -> Iterator[Rating]:
    """The rating, answered by a real server on its address until the block ends."""
    session = Session(rating.store, rating.study, (notices if notices is not None else []).append)
    port = rating.listener.getsockname()[1]
    server = make_server(application(session, rating.hosts, f"cagsr-{port}"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [rating.listener]})
    thread.start()
    try:
        yield rating
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def rated(directory: Path, raters: str = "anna,ben", **options: Any) -> Iterator[Rating]:
    """A rating of ``directory`` on a free port, served."""
    with open_rating(directory, raters, port=0, **options) as rating, served(rating):
        yield rating
