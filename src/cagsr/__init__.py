"""Post-train language models with a reward read from their own attention to the prompt."""

__version__ = "0.1.0"
