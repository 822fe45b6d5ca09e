"""Reading a model's attention to its prompt inside the SDPA pass: `capture` reads, `inspect` finds what can be read."""

from cagsr.attention.capture import capture
from cagsr.attention.inspection import inspect
from cagsr.attention.reading import ATTENTION, Readable, Reading

__all__ = ["ATTENTION", "Readable", "Reading", "capture", "inspect"]
