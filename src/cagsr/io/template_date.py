"""The date that chat templates write into prompts: one for a whole run, or the day would change what a model reads."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any

from transformers.utils import chat_template_utils

__all__ = ["moment", "pinned_date"]

_pinned: ContextVar[datetime | None] = ContextVar("pinned", default=None)


class _Clock(datetime):
    """The clock of transformers' ``strftime_now``: the pinned moment, where one is pinned."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
        return _pinned.get() or datetime.now(tz)


# A variable of a template cannot take the function's place: transformers gives data alone to templates.
chat_template_utils.datetime = _Clock  # type: ignore[attr-defined]


@contextmanager
def pinned_date(recorded: str | None = None) -> Iterator[None]:
    """Context manager, and decorator, within which chat templates see one moment, whoever renders them.

    That is the moment of a block around this one, else the ``recorded`` one (as of `moment`), else now.
    """
    token = _pinned.set(_pinned.get() or datetime.fromisoformat(recorded or moment()))
    try:
        yield
    finally:
        _pinned.reset(token)


def moment() -> str:
    """What chat templates take for now: local time in ISO 8601, to the second."""
    return _Clock.now().isoformat(timespec="seconds")
