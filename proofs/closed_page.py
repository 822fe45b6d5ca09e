"""The rating page is closed to other sites: every route, by every method, in twelve hostile ways.

A real server on loopback is asked over plain sockets, so that a header says what no browser's own code would let
it say. All is as a rater's browser would send it, but for the one thing that makes a case hostile.
"""

import http.client
import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import raters
from cagsr.rating.security import ENTER
from cagsr.rating.server import ROUTES

TITLE = "the rating page is closed to other sites"
PROMISE = 13
SHARDS = False  # the cases are a fixed list

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
# What would change something, were it let in.
BODIES = {"/answer": {"item": 0, "question": "overall", "value": 5}, "/undo": {"answer": 1}}
# The port of a page that the attacker controls, on this computer.
OTHER_PORT = 1

Headers = dict[str, str | None]
# Name -> (host with port, our token) -> the headers that differ; the token itself is a header here.
CASES: dict[str, Callable[[str, str], Headers]] = {
    "Host of another site that points here": lambda own, _: _at("evil.example:" + own.split(":")[1]),
    "Host that begins like ours": lambda own, _: _at(own.replace(":", ".evil.example:")),
    "Host of another port": lambda own, _: _at(f"{own.split(':')[0]}:{OTHER_PORT}"),
    "no Host": lambda own, _: {"Host": None},
    "Origin of another site": lambda own, _: {"Origin": "https://evil.example"},
    "Origin null": lambda own, _: {"Origin": "null"},
    "Origin of another port": lambda own, _: {"Origin": f"http://{own.split(':')[0]}:{OTHER_PORT}"},
    "Origin of another scheme": lambda own, _: {"Origin": f"https://{own}"},
    "Sec-Fetch-Site cross-site": lambda own, _: {"Sec-Fetch-Site": "cross-site"},
    "Sec-Fetch-Site same-site": lambda own, _: {"Sec-Fetch-Site": "same-site"},
    "no token": lambda own, _: {"token": None},
    "a token with one character changed": lambda own, token: {"token": _changed(token)},
}
ITEMS = tuple(itertools.product(ROUTES, METHODS, CASES))
COUNT = len(ITEMS)


def prove(count: int, random: Random, advance: Callable[..., None]) -> list[str]:
    """The requests, out of ``count`` spread over all, that were not refused by 403; and what they changed."""
    chosen = [ITEMS[number * COUNT // min(count, COUNT)] for number in range(min(count, COUNT))]
    failures = []
    with tempfile.TemporaryDirectory() as place:
        directory = raters.comparison(Path(place) / "comparison", 5)
        with raters.rated(directory) as rating:
            own = f"127.0.0.1:{rating.listener.getsockname()[1]}"
            token = rating.links["anna"].rpartition("=")[2]
            rating.store.answer("anna", "scores", 0, "overall", 1)
            before = _content(rating)
            for route, method, case in chosen:
                status = ask(own, route, method, token, CASES[case](own, token))
                failures += [f"{method} {route}, {case}: {status}"] if status != 403 else []
                advance()
            failures += [] if _content(rating) == before else ["something was kept of what was refused"]
            # Nothing is proved by a page that is closed to its own raters too.
            for route in ROUTES:
                statuses = {ask(own, route, method, token, {}) for method in METHODS}
                failures += [f"{route} answers a rater with {statuses}"] if not statuses & {200, 303} else []
    return failures


def ask(own: str, route: str, method: str, token: str, hostile: Headers) -> int:
    """The status of a rater's own request, with the ``hostile`` headers changed; 0 where the server hangs up."""
    headers: Headers = {
        "Host": own,
        "Origin": f"http://{own}",
        "Sec-Fetch-Site": "same-origin",
        "Content-Type": "application/json",
        "token": token,
    }
    headers |= hostile
    shown = headers.pop("token")
    path = route
    if shown is not None and route == ENTER:
        path = f"{route}?token={shown}"
    elif shown is not None:
        headers["Cookie"] = f"cagsr-{own.split(':')[1]}={shown}"
    address, port = own.split(":")
    connection = http.client.HTTPConnection(address, int(port), timeout=20)
    if headers["Host"] is None:
        # The newer protocol knows no request without; its parser answers before we are asked.
        connection._http_vsn, connection._http_vsn_str = 10, "HTTP/1.0"
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            if value is not None:
                connection.putheader(name, value)
        writing = method in ("POST", "PUT", "PATCH", "DELETE")
        body = json.dumps(BODIES.get(route, {})).encode() if writing else b""
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def _at(host: str) -> Headers:
    """As a browser that was led to another name sends it: the page's own origin has that name too."""
    return {"Host": host, "Origin": f"http://{host}"}


def _changed(token: str) -> str:
    return ("B" if token[0] == "A" else "A") + token[1:]


def _content(rating: Any) -> list[Any]:
    return [rating.store._read(f"SELECT * FROM {table}") for table in ("history", "answer", "token", "study")]
