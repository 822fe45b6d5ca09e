"""Rewards that an attention reward must be compared with: what else could have explained a gain."""

from collections.abc import Callable

from cagsr.config.schema import Term
from cagsr.experiments.systems.bench import Bench
from cagsr.experiments.systems.recipe import NotForThisDataError, Recipe, Reinforce
from cagsr.rewards.presets import load_preset

__all__ = ["CONTROLS"]

# Signals that say how much of the prompt a response takes up, and the one that says it is taken up twice.
READING, TWICE = ("attended", "knockout", "swapped", "coverage", "grounding", "mass"), "retold"


def token_copy(bench: Bench) -> Recipe:
    """Salient prompt tokens that occur in the response, at the prices of the reward that is compared."""
    terms = bench.reward.terms
    read = [term for term in terms if term.signal in READING]
    prices = [term for term in terms if term.signal not in (*READING, TWICE)]
    how = read[0].standardise if read else "group"
    copied = Term("token_copy", weight=sum(term.weight for term in read) or 1.0, standardise=how)
    return Reinforce((copied, *prices))


def random_reward(bench: Bench) -> Recipe:
    """A number drawn by lot."""
    return Reinforce((Term("random_reward", options={"seed": bench.seed}),))


def _trained_on(about: str, *terms: Term) -> Callable[[Bench], Recipe]:
    def control(bench: Bench) -> Recipe:
        return Reinforce(terms)

    control.__doc__ = about
    return control


def oracle(bench: Bench) -> Recipe:
    """The checker itself: an upper bound that knows the answers."""
    if bench.checker is None:
        raise NotForThisDataError("no checker")
    return Reinforce(tuple(load_preset("oracle")), labels=len(bench.prompts) * bench.sampling.candidates)


CONTROLS: dict[str, Callable[[Bench], Recipe]] = {
    "lexical": _trained_on(
        "Salient prompt words that occur in the response; no attention.", *load_preset("lexical")
    ),
    "token-copy": token_copy,
    "length": _trained_on("Longer is better.", *load_preset("length")),
    "self-certainty": _trained_on(
        "KL from uniform of every step (Intuitor, arXiv 2505.19590).", *load_preset("self-certainty")
    ),
    "agreement": _trained_on(
        "Likeness to the group's other candidates: majority vote, minimum Bayes risk.", Term("agreement")
    ),
    "log-probability": _trained_on(
        "Mean log-probability that the base gives the response.", Term("reference_logprob")
    ),
    "random": random_reward,
    "paper": _trained_on("The literal sum of the paper: mass, focus, repetition.", *load_preset("paper")),
    "oracle": oracle,
}
