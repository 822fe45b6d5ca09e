"""Ways to make a model better, comparable with one another: one file a system, found by name.

A system is a function ``(bench) -> recipe``: it looks at what there is and says what to do. It raises
NotForThisDataError where it needs what this data does not have. A new one is a file and a line in SYSTEMS.
"""

__all__ = ["SYSTEMS", "System", "check_packages", "find_systems"]

from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec

from cagsr.errors import InputError, closest
from cagsr.experiments.systems.bench import Bench
from cagsr.experiments.systems.cagsr import cagsr_grpo, cagsr_ppo
from cagsr.experiments.systems.controls import CONTROLS
from cagsr.experiments.systems.no_rl import continued_sft, no_rl
from cagsr.experiments.systems.policy_gradient import policy_gradient
from cagsr.experiments.systems.ranking import best_of_k, dpo, s3ft, sft_best
from cagsr.experiments.systems.recipe import Recipe
from cagsr.experiments.systems.reward_models import hybrid, rlhf, synthetic_preference

System = Callable[[Bench], Recipe]

# Those that train a reward model: of pairs that nobody judged, and of people's.
SYNTHETIC, FROM_PAIRS = "synthetic-preference", ("rlhf", "hybrid-")

SYSTEMS: dict[str, System] = {
    "no-rl": no_rl,
    "continued-sft": continued_sft,
    "policy-gradient": policy_gradient,
    SYNTHETIC: synthetic_preference,
    "cagsr-grpo": cagsr_grpo,
    "cagsr-ppo": cagsr_ppo,
    "rlhf": rlhf,
    "best-of-k": best_of_k,
    "sft-best": sft_best,
    "dpo": dpo,
    "s3ft": s3ft,
    **CONTROLS,
}


def find_systems(names: Sequence[str] | None, labels: Sequence[int]) -> dict[str, System]:
    """The systems of these names, all for None; ``hybrid-N`` is one for each number of ``labels``.

    Raises InputError for an unknown name.
    """
    known = SYSTEMS | {f"hybrid-{count}": hybrid(count) for count in labels}
    if names is None:
        return known
    for name in names:
        if name not in known:
            raise InputError(f"compare.systems: unknown system {name!r}{closest(name, known)}")
    return {name: known[name] for name in dict.fromkeys(names)}


def check_packages(systems: Iterable[str], has_pairs: bool) -> None:
    """Raises InputError where one of these systems trains a reward model and TRL, which does that, is missing.

    ``has_pairs``: without pairs of people only synthetic-preference gets as far.
    """
    training = [name for name in systems if name == SYNTHETIC or (has_pairs and name.startswith(FROM_PAIRS))]
    if training and find_spec("trl") is None:
        raise InputError(
            f"compare.systems: for {', '.join(training)} TRL trains a reward model, and it is not installed: "
            "pip install 'trl>=1.16,<2', or name other systems."
        )
