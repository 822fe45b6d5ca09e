"""RL on a reward model of synthetic pairs: a response of the base against the same response corrupted."""

from random import Random

from cagsr.config.schema import Term
from cagsr.data.corruptions import degraded
from cagsr.data.preferences import Pair
from cagsr.experiments.systems.bench import Bench
from cagsr.experiments.systems.recipe import NotForThisDataError, Recipe, Reinforce

__all__ = ["synthetic_preference"]


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
