"""A language model behind an OpenAI-compatible server."""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence

import httpx2

from cagsr.errors import EndpointError, InputError

__all__ = ["Endpoint", "refuse_secrets"]

KEY = "OPENAI_API_KEY"
ATTEMPTS = 4
# Seconds before the second attempt; each later wait is twice as long, or what the server asks for, up to LONGEST.
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
PASSING = frozenset({408, 409, 429, 500, 502, 503, 504})
SHOWN = 200


class Endpoint:
    """Asks ``POST url/chat/completions``; the key is read from OPENAI_API_KEY, if that is set, and never shown.

    Timeouts, broken connections and statuses that pass (429, 5xx) are tried again, ATTEMPTS times in all. Raises
    EndpointError, with the URL, where the server still does not answer or does not speak the protocol, and
    InputError where it refuses the key or the request.

    Source: https://platform.openai.com/docs/api-reference/chat/create.
    """

    def __init__(
        self, url: str, model: str, timeout: float = 60.0, sleep: Callable[[float], None] = time.sleep
    ):
        refuse_secrets(url)
        self.url, self.model = url.rstrip("/"), model
        self._timeout, self._sleep = timeout, sleep
        self._key = os.environ.get(KEY)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        try:
            self._client = httpx2.Client(timeout=timeout, headers=headers)
            parsed = httpx2.URL(self.url)
            if parsed.scheme not in ("http", "https") or not parsed.host:
                raise ValueError("it must be http:// or https:// and a host")
        except (ValueError, httpx2.InvalidURL) as error:
            raise InputError(f"metrics.judge.endpoint: {self.url!r} is no URL: {error}") from error

    def __call__(self, messages: Sequence[Mapping[str, str]], max_tokens: int) -> str:
        """The model's answer, greedy; empty where it gave no text."""
        body = {
            "model": self.model,
            "messages": list(messages),
            "temperature": 0,
            "max_tokens": max_tokens,
        }
        wait, problem = FIRST_WAIT, ""
        for attempt in range(1, ATTEMPTS + 1):
            asked_for = None
            try:
                response = self._client.post(f"{self.url}/chat/completions", json=body)
            except httpx2.TimeoutException:
                problem = f"no answer within {self._timeout:g} s"
            except httpx2.TransportError as error:
                problem = str(error) or type(error).__name__
            else:
                if response.status_code not in PASSING:
                    return self._content(response)
                problem = f"status {response.status_code}: {self._shown(response)}"
                asked_for = _seconds(response.headers.get("retry-after"))
            if attempt < ATTEMPTS:
                self._sleep(min(LONGEST_WAIT, wait if asked_for is None else asked_for))
                wait *= 2
        raise EndpointError(
            f"metrics.judge: {self.url} does not answer ({problem}; tried {ATTEMPTS} times). Start the server, set "
            "metrics.judge.endpoint to its URL up to and with /v1, raise metrics.judge.timeout, or set "
            "metrics.judge to null."
        )

    def describe(self) -> dict[str, str]:
        """Where and which; what weights a server has loaded only the server knows."""
        return {"endpoint": self.url, "name": self.model}

    def _content(self, response: httpx2.Response) -> str:
        if response.status_code in (401, 403):
            raise InputError(f"metrics.judge: {self.url} refuses the key; set {KEY} to one that it knows")
        if response.status_code != 200:
            raise InputError(
                f"metrics.judge: {self.url} refuses the request (status {response.status_code}: "
                f"{self._shown(response)}). Check metrics.judge.endpoint (up to and with /v1) and "
                f"metrics.judge.model ({self.model!r})."
            )
        try:
            content = response.json()["choices"][0]["message"].get("content")
            if content is not None and not isinstance(content, str):
                raise TypeError(f"content is no text but {type(content).__name__}")
        except (json.JSONDecodeError, UnicodeDecodeError, LookupError, TypeError, AttributeError) as error:
            raise EndpointError(
                f"metrics.judge: {self.url} does not speak the OpenAI protocol: its answer has no "
                f"choices[0].message.content ({type(error).__name__}: {self._shown(response)}). "
                "Set metrics.judge.endpoint to a URL up to and with /v1."
            ) from None
        return content or ""

    def _shown(self, response: httpx2.Response) -> str:
        """What the server said, on one line. Some servers repeat the key they were given."""
        text = response.text.replace(self._key, "***") if self._key else response.text
        return " ".join(text.split())[:SHOWN]


def refuse_secrets(url: str) -> None:
    """Raises InputError for a URL with a password or key in it: URLs are written to config.yaml and to results."""
    rest = url.partition("://")[2] or url
    if "@" in rest.partition("/")[0] or "?" in rest or "#" in rest:
        raise InputError(
            "metrics.judge.endpoint: no user, password or query belongs in the URL, which is written into the "
            f"records of every run (not shown here). Give the key in the environment: {KEY}."
        )


def _seconds(header: str | None) -> float | None:
    """``Retry-After`` in seconds; None where it is absent or a date."""
    try:
        return None if header is None else max(0.0, float(header))
    except ValueError:
        return None
