"""RL on a preference model that no person taught: a good answer against the same answer made worse."""

from random import Random

from cagsr.config.schema import Term
from cagsr.data.preferences import Pair, degraded
from cagsr.experiments.systems.bench import Bench
from cagsr.experiments.systems.recipe import NotForThisDataError, Recipe, Reinforce

__all__ = ["synthetic_preference"]


def synthetic_preference(bench: Bench) -> Recipe:
    """A reward model of the base's own answers against the same made worse, then RL on it."""
    random = Random(f"synthetic {bench.seed}")
    answers = [texts[0] for texts in bench.samples.responses]
    pairs = []
    for n, prompt in enumerate(bench.prompts[: bench.synthetic]):
        chosen, rejected = degraded(prompt.text, answers[n], answers, random)
        if chosen != rejected:
            pairs.append(Pair(prompt, chosen, rejected))
    if not pairs:
        raise NotForThisDataError("no answer that could be made worse")
    path = bench.reward_model("synthetic-preference", pairs)
    return Reinforce((Term("reward_model", options={"path": path}),))
