"""The attention reward with a little human feedback: the paper's future work."""

from collections.abc import Callable

from cagsr.config.schema import Term
from cagsr.experiments.systems.bench import Bench
from cagsr.experiments.systems.recipe import Recipe, Reinforce

__all__ = ["hybrid"]

# In deviations of the group: about as much as the attention reward itself differs between a prompt's candidates.
WEIGHT = 0.5


def hybrid(count: int) -> Callable[[Bench], Recipe]:
    """The system that adds a reward model of ``count`` human pairs to the attention reward."""

    def system(bench: Bench) -> Recipe:
        pairs = bench.people(count)
        path = bench.reward_model(f"hybrid-{count}", pairs)
        learnt = Term("reward_model", weight=WEIGHT, options={"path": path})
        return Reinforce((*bench.reward.terms, learnt), labels=count)

    system.__doc__ = f"The attention reward and a reward model of {count} human pairs."
    return system
