"""Memory that a training will take, by part and phase, counted from its config before any weights are loaded."""

from cagsr.planning.plan import plan

__all__ = ["plan"]
