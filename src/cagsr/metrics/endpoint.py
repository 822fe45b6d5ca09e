"""Client of a judge model behind an OpenAI-compatible server, by OpenAI's own package."""

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from cagsr.errors import CagsrError, EndpointError, InputError

__all__ = ["Endpoint", "check_endpoint", "refuse_secrets"]

KEY = "OPENAI_API_KEY"
RETRIES = 3
SHOWN = 200


class Endpoint:
    """A chat model behind ``POST url/chat/completions``; the key is read from OPENAI_API_KEY, if set, and never shown.

    Timeouts, broken connections and statuses that pass (408, 409, 429, 5xx) are tried again by the client, which
    waits as ``Retry-After`` asks or twice as long each time. Raises EndpointError, with the URL, where the server
    still does not answer or does not speak the protocol, and InputError where the package openai is missing, or the
    server refuses the key or the request.

    Source: https://platform.openai.com/docs/api-reference/chat/create.
    """

    def __init__(self, url: str, model: str, timeout: float = 60.0):
        check_endpoint(url)
        from openai import OpenAI  # takes half a second, which only users of a server should wait for

        self.url, self.model = url.rstrip("/"), model
        self._timeout, self._key = timeout, os.environ.get(KEY, "")
        if not (self._key.isascii() and self._key.isprintable()):
            raise InputError(
                f"{KEY}: this (not shown here) is no key, which is printable ASCII; set it again"
            )
        try:
            # The client insists on a key, which many servers do not: this one is made up and not sent.
            key = self._key or "none"
            self._client = OpenAI(base_url=self.url, api_key=key, timeout=timeout, max_retries=RETRIES)
            if self._client.base_url.scheme not in ("http", "https") or not self._client.base_url.host:
                raise ValueError("it must be http:// or https:// and a host")
        except Exception as error:  # httpx2 reports an invalid URL by an error that is no ValueError
            raise InputError(f"metrics.judge.endpoint: {self.url!r} is no URL: {error}") from error

    def __call__(self, messages: Sequence[Mapping[str, str]], max_tokens: int) -> str:
        """The model's answer, greedy; empty where it gave no text."""
        from openai import APIError, omit

        asked: Any = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": max_tokens}
        headers = {} if self._key else {"Authorization": omit}
        try:
            response = self._client.chat.completions.with_raw_response.create(**asked, extra_headers=headers)
        except APIError as error:
            problem = self._problem(error)
        else:
            return self._content(response)
        raise problem  # not in the handler: the client's error repeats what the server said, which may be the key

    def describe(self) -> dict[str, str]:
        """URL and model name; only the server knows which weights it has loaded."""
        return {"endpoint": self.url, "name": self.model}

    def _problem(self, error: Any) -> CagsrError:
        from openai import APITimeoutError

        status = getattr(error, "status_code", None)
        if status in (401, 403):
            return InputError(f"metrics.judge: {self.url} refuses the key; set {KEY} to one that it knows")
        if status is not None:
            said = f"status {status}: {self._shown(error.response.text)}"
        elif isinstance(error, APITimeoutError):
            said = f"no answer within {self._timeout:g} s"
        else:
            said = str(error.__cause__ or error)
        if status is None or status >= 500 or status in (408, 409, 429):
            return EndpointError(
                f"metrics.judge: {self.url} does not answer ({said}; tried up to {RETRIES + 1} times). Start the "
                "server, set metrics.judge.endpoint to its URL up to and with /v1, raise metrics.judge.timeout, or "
                "set metrics.judge to null."
            )
        return InputError(
            f"metrics.judge: {self.url} refuses the request ({said}). Check metrics.judge.endpoint (up to and with "
            f"/v1) and metrics.judge.model ({self.model!r})."
        )

    def _content(self, response: Any) -> str:
        try:
            content = response.parse().choices[0].message.content
            if content is not None and not isinstance(content, str):
                raise TypeError(f"content is no text but {type(content).__name__}")
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise EndpointError(
                f"metrics.judge: {self.url} does not speak the OpenAI protocol: its answer has no "
                f"choices[0].message.content ({type(error).__name__}: {self._shown(response.text)}). "
                "Set metrics.judge.endpoint to a URL up to and with /v1."
            ) from None
        return content or ""

    def _shown(self, text: str) -> str:
        """The server's message on one line, without the key, which some servers repeat."""
        return " ".join((text.replace(self._key, "***") if self._key else text).split())[:SHOWN]


def check_endpoint(url: str) -> None:
    """Raise InputError for a secret in the URL, and where the package openai is not installed."""
    refuse_secrets(url)
    if find_spec("openai") is None:
        raise InputError(
            "metrics.judge.endpoint: servers are asked through the package openai: pip install openai, or "
            "set it to null and name a model to load here in metrics.judge.model"
        )


def refuse_secrets(url: str) -> None:
    """Raise InputError for a URL with a password or key in it: URLs are written to config.yaml and to results."""
    rest = url.partition("://")[2] or url
    if "@" in rest.partition("/")[0] or "?" in rest or "#" in rest:
        raise InputError(
            "metrics.judge.endpoint: no user, password or query belongs in the URL, which is written into the "
            f"records of every run (not shown here). Give the key in the environment: {KEY}."
        )
