"""Every error the program raises on purpose, and the exit code each one ends with.

CagsrError            base; never raised itself
├── InputError        exit 2: config, data or arguments; the message names file:line or file:row and the mend
│   └── UnsupportedModelError   a model that we cannot train, or whose attention we cannot read exactly
├── NumericsError     exit 3: a loss, gradient, reward or log-probability that is not finite
│   └── SignalError   a signal that raised, or returned NaN, inf, a wrong type or a wrong length
├── VerdictError      exit 5: a probe's verdict that --fail-on names
├── EndpointError     exit 69: a server that we ask does not answer, or not as it should
├── StorageError      exit 4: a disk that is full, unwritable or holds a damaged run
├── MemoryRanOutError exit 71: the memory of the machine or of its accelerator; resumable with a smaller pass
└── StoppedError      exit 75: stopped by a signal, the time limit or the collapse watch; resumable
    └── InterruptedRunError     exit 130: stopped by Ctrl-C; resumable

A bug of ours is any other exception: exit 1, with its traceback.
"""

__all__ = [
    "CagsrError",
    "EndpointError",
    "InputError",
    "InterruptedRunError",
    "MemoryRanOutError",
    "NumericsError",
    "SignalError",
    "StoppedError",
    "StorageError",
    "UnsupportedModelError",
    "VerdictError",
    "closest",
    "near",
    "printable",
    "ran_out_of_memory",
]

import difflib
from collections.abc import Iterable


class CagsrError(Exception):
    """Base of all errors that carry a message for the user instead of a traceback.

    The message may quote files and names, and is `printable` all the same.
    """

    exit_code = 1

    def __str__(self) -> str:
        return printable(super().__str__())


class InputError(CagsrError):
    """Something the user can correct: config, data, arguments or files."""

    exit_code = 2


class UnsupportedModelError(InputError):
    """A model that cannot be trained, or whose attention cannot be read exactly."""


class NumericsError(CagsrError):
    """A loss, gradient, reward or log-probability that is not finite."""

    exit_code = 3


class SignalError(NumericsError):
    """A signal or a policy loss that raised, or returned what is not finite or of the wrong shape."""


class EndpointError(CagsrError):
    """A server that does not answer, or not as its protocol says."""

    exit_code = 69


class StorageError(CagsrError):
    """A disk that is full or unwritable, or a damaged run on it."""

    exit_code = 4


class VerdictError(CagsrError):
    """A probe whose verdict is one that ``--fail-on`` names; the probe itself is done."""

    exit_code = 5


class MemoryRanOutError(CagsrError):
    """Out of memory, of the machine or of its accelerator."""

    exit_code = 71


class StoppedError(CagsrError):
    """A run stopped by a signal, the time limit or the collapse watch; it can be resumed."""

    exit_code = 75


class InterruptedRunError(StoppedError):
    """A run stopped by Ctrl-C; it can be resumed."""

    exit_code = 130


def closest(word: str, choices: Iterable[str]) -> str:
    """Suggestion at the end of a message: ``"; did you mean 'learning_rate'?"``, or all choices if none is near."""
    choices = sorted(choices)
    found = near(word, choices)
    return f"; choose from {', '.join(choices)}" if found is None else f"; did you mean {found!r}?"


def near(word: str, choices: Iterable[str], least: float | None = None) -> str | None:
    """The choice that ``word`` most probably misspells, in whatever case and with whatever separators.

    ``least`` in [0, 1] is how alike the two must be; None if no choice is. By default six tenths, and a half for
    words of up to three letters, in which one wrong letter is much.
    """
    given = _plain(word)
    least = least or (0.6 if len(given) > 3 else 0.5)
    alike = [
        (difflib.SequenceMatcher(None, given, _plain(choice)).ratio(), -abs(len(choice) - len(word)), choice)
        for choice in choices
    ]
    best = max(alike, default=(0.0, 0, ""))
    return best[2] if best[0] >= least else None


def _plain(word: str) -> str:
    return "".join(character for character in word.casefold() if character not in "_-. ")


def printable(text: str) -> str:
    """Escape each character of ``text`` that a terminal would interpret, or that could not be written at all."""
    return "".join(
        character if character.isprintable() or character == "\n" else ascii(character)[1:-1]
        for character in text
    )


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, an accelerator or the CPU allocator means out of memory. Imports no torch."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool({"MemoryError", "OutOfMemoryError"} & kinds) or "DefaultCPUAllocator" in str(error)
