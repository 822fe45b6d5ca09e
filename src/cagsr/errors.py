"""Every error the program raises on purpose, and the exit code each one ends with.

CagsrError            base; never raised itself
├── InputError        exit 2: config, data or arguments; the message names file:line or file:row and the mend
│   └── UnsupportedModelError   a model that we cannot train, or whose attention we cannot read exactly
├── NumericsError     exit 3: a loss, gradient, reward or log-probability that is not finite
│   └── SignalError   a signal that raised, or returned NaN, inf, a wrong type or a wrong length
├── EndpointError     exit 69: a server that we ask does not answer, or not as it should
├── StorageError      exit 4: a disk that is full, unwritable or holds a damaged run
└── StoppedError      exit 75 (130 for Ctrl-C): stopped from outside, or by the collapse watch; resumable

A bug of ours is any other exception: exit 1, with its traceback.
"""

__all__ = [
    "CagsrError",
    "EndpointError",
    "InputError",
    "NumericsError",
    "SignalError",
    "StoppedError",
    "StorageError",
    "UnsupportedModelError",
    "closest",
    "printable",
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


class StoppedError(CagsrError):
    exit_code = 75


def closest(word: str, choices: Iterable[str]) -> str:
    """The tail of an error message: ``"; did you mean 'learning_rate'?"``, or the choices if none is near."""
    choices = sorted(choices)
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else f"; choose from {', '.join(choices)}"


def printable(text: str) -> str:
    """``text`` with an escape for each character that a terminal would obey, or that could not be written at all."""
    return "".join(
        character if character.isprintable() or character == "\n" else ascii(character)[1:-1]
        for character in text
    )
