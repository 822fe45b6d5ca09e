"""Graceful shutdown on SIGTERM, Ctrl-C or a time limit: a loop learns of it, and stops where its state is complete."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from cagsr.errors import InterruptedRunError, StoppedError

__all__ = ["Stops", "Terminated", "Unfinished", "start_clock", "terminate", "waiting"]

GRACE = 5.0
"""Seconds after a signal in which work may come to its end; then what is unfinished is thrown away."""

CALLBACK = -2
"""The request of a callback, beside the numbers of signals and -1 for the time limit."""

_clock = {"started": time.monotonic()}
_waiting = {"for": 0}


def start_clock() -> None:
    """Start the clock of the time limit: at the start of the program, from which a scheduler counts too."""
    _clock["started"] = time.monotonic()


class Terminated(BaseException):
    """SIGTERM outside a `Stops` block. A BaseException like KeyboardInterrupt, so that no handler swallows it."""


class Unfinished(BaseException):
    """A request to stop, raised inside work that is thrown away; a BaseException, so that no handler swallows it."""

    def __init__(self, request: int):
        super().__init__(f"asked to stop ({request})")
        self.request = request


def terminate(number: int, frame: FrameType | None) -> None:
    """Signal handler that raises Terminated."""
    raise Terminated


@contextmanager
def waiting() -> Iterator[None]:
    """Context manager around a wait for somebody else (a server, a dashboard), which may take for ever.

    A signal that a `Stops` block holds back is raised in it as Unfinished, at once, and stays requested.
    """
    _waiting["for"] += 1
    try:
        yield
    finally:
        _waiting["for"] -= 1


class Stops:
    """Context manager that holds signals back until `requested` reports them; a second Ctrl-C interrupts at once.

    A signal that came too late for the loop is raised again when the block ends. ``max_seconds`` since
    `start_clock` is a request too, made one round (the longest between two checks) early.
    """

    def __init__(self, max_seconds: float | None = None):
        self.max_seconds = max_seconds
        self._signal: int | None = None
        self._asked = 0.0
        self._before: dict[int, Any] = {}
        self._longest = 0.0
        self._last: float | None = None

    def __enter__(self) -> "Stops":
        # Handlers can be set in the main thread only; a program that trains in another has its own way to stop.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                # What the shell had ignored for us (nohup, a job in the background) stays ignored.
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._keep)
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        if kind is None and self._signal not in (None, CALLBACK):
            # It came too late for the loop; whoever called it may have more to do, and must hear of it.
            signal.raise_signal(self._signal)

    def _keep(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self._signal is None:
            self._asked = time.monotonic()
        self._signal = number
        if _waiting["for"]:
            raise Unfinished(number)

    def ask(self) -> None:
        """Ask this process to stop at the end of what it does, as a signal would: a callback's wish."""
        self._signal = CALLBACK

    def requested(self) -> int:
        """The pending request to stop: 0 for none, a signal's number, or -1 for the time limit."""
        now = time.monotonic()
        self._longest = max(self._longest, now - (self._last or now))
        self._last = now
        if self._signal is not None:
            return int(self._signal)
        return -1 if self._is_over(self._longest) else 0

    def overdue(self) -> int:
        """The request to stop that can wait no longer, for work to be thrown away: GRACE after a signal, or the limit.

        A callback's can: it asks for the end of a step.
        """
        if self._signal not in (None, CALLBACK) and time.monotonic() - self._asked >= GRACE:
            return int(self._signal)
        return -1 if self._is_over(0.0) else 0

    def _is_over(self, ahead: float) -> bool:
        now = time.monotonic() - _clock["started"]
        return self.max_seconds is not None and now + ahead >= self.max_seconds

    @staticmethod
    def error(request: int, where: str) -> StoppedError:
        """The error to raise for a request to stop, once everything is saved."""
        if request == signal.SIGINT:
            return InterruptedRunError(f"stopped by Ctrl-C {where}; everything is saved, --resume goes on")
        names = {-1: "the time limit", CALLBACK: "a callback"}
        reason = f"by {names[request] if request in names else signal.Signals(request).name}"
        return StoppedError(f"stopped {reason} {where}; everything is saved, --resume goes on")
