"""Request guards of the rating page: only the rater's own browser, at our own address, with the rater's own token.

A page of another site can make a browser send requests here, by name (DNS rebinding), by form, by script or by
link. Each needs a Host, an Origin, a Sec-Fetch-Site or a cookie that is not ours, so each is refused, before any
route is looked up and whatever its method is.
"""

from collections.abc import Callable, Collection
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["ENTER", "Guards"]

# The one route that a token in the address opens: it turns the token into a cookie.
ENTER = "/enter"
LARGEST_BODY = 4096
READING = ("GET", "HEAD")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Guards:
    """ASGI middleware: 403 for requests that do not come from a rater's own page, 413 for large bodies.

    hosts      the values of the Host header that are ours, with the port
    cookie     the name of the cookie that holds a token
    rater_of   token -> rater, None for nobody's

    What passes has the rater's name in ``scope["state"]["rater"]``.
    """

    def __init__(
        self, app: ASGIApp, hosts: Collection[str], cookie: str, rater_of: Callable[[str], str | None]
    ):
        self.app, self.hosts, self.cookie, self.rater_of = app, frozenset(hosts), cookie, rater_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # no WebSocket is served, and nothing happens at start or end
            return
        headers = Headers(scope=scope)
        reason = self._foreign(headers, scope["method"])
        rater = None if reason else self._rater(scope, headers)
        if rater is None:
            reason = reason or "the link is not complete, or no longer good"
            refused = PlainTextResponse(f"This page is closed: {reason}.\n", status_code=403)
            await refused(scope, receive, _with_headers(send))
            return
        scope.setdefault("state", {})["rater"] = rater
        body = await _body(receive)
        if body is None:
            large = PlainTextResponse("The request is too large.\n", status_code=413)
            await large(scope, receive, _with_headers(send))
            return
        await self.app(scope, _replayed(body, receive), _with_headers(send))

    def _foreign(self, headers: Headers, method: str) -> str:
        """The reason why a request does not come from our own page; empty where it does."""
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) != 1 or hosts[0].lower() not in self.hosts:
            return f"it answers at {' or '.join(sorted(self.hosts))} only"
        if any(origin != f"http://{hosts[0].lower()}" for origin in origins):
            return "the request comes from another site"
        # Browsers name the origin of whatever may change something.
        if method not in READING and len(origins) != 1:
            return "the request does not say where it comes from"
        allowed = ("same-origin", "none") if method in READING else ("same-origin",)
        if any(site not in allowed for site in headers.getlist("sec-fetch-site")):
            return "the request comes from another site; type or paste the link into the address bar"
        return ""

    def _rater(self, scope: Scope, headers: Headers) -> str | None:
        if scope["path"] == ENTER:
            tokens = parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
        else:
            # Lenient as browsers are: other programs on this computer have cookies here too, of any form.
            tokens = [cookie_parser(line).get(self.cookie) for line in headers.getlist("cookie")]
        return self.rater_of(tokens[0]) if len(tokens) == 1 and tokens[0] else None


async def _body(receive: Receive) -> bytes | None:
    """The whole request body, None where it is larger than any that the page sends."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > LARGEST_BODY:
            return None
        if not message.get("more_body", False):
            return body


def _replayed(body: bytes, receive: Receive) -> Receive:
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(HEADERS)
        await send(message)

    return sending
