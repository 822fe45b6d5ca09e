"""Reading a model's attention to its prompt: which layers can be read, and how, inside the SDPA pass."""

from cagsr.attention.capture import ATTENTION, Readable, Reading, capture
from cagsr.attention.inspection import inspect

__all__ = ["ATTENTION", "Readable", "Reading", "capture", "inspect"]
