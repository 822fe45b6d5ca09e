"""Reinforcement learning on reward models: of people's pairs, alone or beside attention, and of synthetic pairs."""

from collections.abc import Callable
from random import Random

from cagsr.config.schema import Term
from cagsr.data.corruptions import degraded
from cagsr.data.preferences import Pair
from cagsr.experiments.systems.bench import Bench
from cagsr.experiments.systems.recipe import NotForThisDataError, Recipe, Reinforce

__all__ = ["hybrid", "rlhf", "synthetic_preference"]

# In deviations of the group: about as much as the attention reward itself differs between a prompt's candidates.
WEIGHT = 0.5


def rlhf(bench: Bench) -> Recipe:
    """A reward model of all human pairs, then RL on it."""
    pairs = bench.people()
    path = bench.reward_model("rlhf", pairs)
    return Reinforce((Term("reward_model", options={"path": path}),), labels=len(pairs))


def hybrid(count: int) -> Callable[[Bench], Recipe]:
    """The system that adds a reward model of ``count`` human pairs to the attention reward: the paper's future work."""

    def system(bench: Bench) -> Recipe:
        path = bench.reward_model(f"hybrid-{count}", bench.people(count))
        learnt = Term("reward_model", weight=WEIGHT, options={"path": path})
        return Reinforce((*bench.reward.terms, learnt), labels=count)

    system.__doc__ = f"The attention reward and a reward model of {count} human pairs."
    return system


def synthetic_preference(bench: Bench) -> Recipe:
    """A reward model of the base's own responses against the same made worse, then RL on it."""
    random = Random(f"synthetic {bench.seed}")
    answers = [texts[0] for texts in bench.samples.responses]
    pairs = []
    for n, prompt in enumerate(bench.prompts[: bench.synthetic]):
        # Words and clauses that are not of this prompt come from another one's response.
        others = [m for m, text in enumerate(answers) if text.strip() and text != answers[n]]
        other = random.choice(others or [n])
        rejected = degraded(answers[n], prompt.text, answers[other], bench.prompts[other].text, random)
        if rejected is not None:
            pairs.append(Pair(prompt, answers[n], rejected))
    if not pairs:
        raise NotForThisDataError("no answer that could be made worse")
    path = bench.reward_model("synthetic-preference", pairs)
    return Reinforce((Term("reward_model", options={"path": path}),))
