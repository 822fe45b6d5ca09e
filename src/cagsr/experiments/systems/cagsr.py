"""CAGSR: reinforcement learning whose reward is the base's own attention to the prompt."""

from cagsr.experiments.systems.bench import Bench
from cagsr.experiments.systems.recipe import Recipe, Reinforce

__all__ = ["cagsr_grpo", "cagsr_ppo"]


def cagsr_grpo(bench: Bench) -> Recipe:
    """The attention reward, advantages within the group of candidates."""
    return Reinforce(bench.reward.terms, algorithm="grpo")


def cagsr_ppo(bench: Bench) -> Recipe:
    """The attention reward, PPO with a critic, as in the paper."""
    return Reinforce(bench.reward.terms, algorithm="ppo")
