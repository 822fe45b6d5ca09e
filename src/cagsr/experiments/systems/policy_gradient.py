"""Standard policy gradient: a conventional reward for the whole response, a baseline, nothing else."""

from cagsr.config.schema import Term
from cagsr.experiments.systems.bench import Bench
from cagsr.experiments.systems.recipe import Recipe, Reinforce

__all__ = ["policy_gradient"]


def policy_gradient(bench: Bench) -> Recipe:
    """REINFORCE with a baseline on a conventional reward (ROUGE-L to the reference).

    Source: Williams 1992; the paper's "standard policy gradients".
    Differs: the reward is divided by its deviation over the step, so that the price of KL weighs as much here as
    in the other systems.
    """
    # Another reward than the default may need none; where it does and there are none, that is said here.
    labels = bench.distinct_prompts if bench.conventional == "reference_overlap" and bench.references else 0
    return Reinforce(
        (Term(bench.conventional, standardise="batch"),), algorithm="policy-gradient", labels=labels
    )
