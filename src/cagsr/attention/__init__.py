"""Reading a model's attention to its prompt: which layers can be read, and how, inside the SDPA pass."""

from cagsr.attention.capture import capture
from cagsr.attention.inspection import inspect
from cagsr.attention.reading import ATTENTION, Readable, Reading

__all__ = ["ATTENTION", "Readable", "Reading", "capture", "inspect"]
