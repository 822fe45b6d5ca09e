"""Every error the program raises on purpose, and the exit code each one ends with.

CagsrError            base; never raised itself
├── InputError        exit 2: config, data or arguments; the message names file:line or file:row and the mend
│   └── UnsupportedModelError   a model that we cannot train, or whose attention we cannot read exactly
├── NumericsError     exit 3: a loss, gradient, reward or log-probability that is not finite
│   └── SignalError   a signal that raised, or returned NaN, inf, a wrong type or a wrong length
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
    "closest",
]

import difflib
from collections.abc import Iterable


class CagsrError(Exception):
    """Base of all errors that carry a message for the user instead of a traceback."""

    exit_code = 1


class InputError(CagsrError):
    exit_code = 2


class UnsupportedModelError(InputError):
    pass


class NumericsError(CagsrError):
    exit_code = 3


class SignalError(NumericsError):
    pass


class EndpointError(CagsrError):
    exit_code = 69


class StorageError(CagsrError):
    exit_code = 4


class MemoryRanOutError(CagsrError):
    exit_code = 71


class StoppedError(CagsrError):
    exit_code = 75


class InterruptedRunError(StoppedError):
    exit_code = 130


def closest(word: str, choices: Iterable[str]) -> str:
    """The tail of an error message: ``"; did you mean 'learning_rate'?"``, or the choices if none is near."""
    choices = sorted(choices)
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else f"; choose from {', '.join(choices)}"
