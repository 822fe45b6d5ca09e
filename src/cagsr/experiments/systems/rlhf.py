"""RLHF: a reward model of what people preferred, then RL on it."""

from cagsr.config.schema import Term
from cagsr.experiments.systems.bench import Bench
from cagsr.experiments.systems.recipe import Recipe, Reinforce

__all__ = ["rlhf"]


def rlhf(bench: Bench) -> Recipe:
    """A reward model of all human pairs, then RL on it."""
    pairs = bench.people()
    path = bench.reward_model("rlhf", pairs)
    return Reinforce((Term("reward_model", options={"path": path}),), labels=len(pairs))
