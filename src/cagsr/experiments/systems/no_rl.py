"""What there is before any system: the base, and the base taught a while longer."""

from cagsr.experiments.systems.bench import Bench
from cagsr.experiments.systems.recipe import Imitate, Recipe, Unchanged

__all__ = ["continued_sft", "no_rl"]


def no_rl(bench: Bench) -> Recipe:
    """The supervised base as it is."""
    return Unchanged()


def continued_sft(bench: Bench) -> Recipe:
    """More supervised learning of the references, as many responses as reinforcement learning sees."""
    k = bench.sampling.candidates
    batch_size = bench.prompts_per_step * k
    return Imitate(bench.prompts, bench.references, batch_size=batch_size, labels=bench.distinct_prompts)
