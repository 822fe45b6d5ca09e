"""What a system decides: how the base is to be made better. Plain data, carried out elsewhere."""

__all__ = ["Choose", "Imitate", "NotForThisDataError", "Prefer", "Recipe", "Reinforce", "Unchanged"]

from dataclasses import dataclass

from cagsr.config.schema import Term
from cagsr.data.preferences import Pair
from cagsr.errors import CagsrError
from cagsr.types import Prompt


class NotForThisDataError(CagsrError):
    """A system needs what this data does not have; the comparison shows why and goes on."""


@dataclass(frozen=True)
class Unchanged:
    """The base as it is."""

    labels: int = 0


@dataclass(frozen=True)
class Reinforce:
    """Reinforcement learning on these terms. One algorithm for all that differ in the reward alone."""

    terms: tuple[Term, ...]
    algorithm: str = "grpo"
    labels: int = 0


@dataclass(frozen=True)
class Imitate:
    """Supervised learning of these responses, one a prompt, ``batch_size`` of them a step."""

    prompts: list[Prompt]
    responses: list[str]
    batch_size: int
    labels: int = 0


@dataclass(frozen=True)
class Prefer:
    """Direct preference optimisation on these pairs."""

    pairs: list[Pair]
    batch_size: int
    labels: int = 0


@dataclass(frozen=True)
class Choose:
    """No training: of K samples of the base the one that the reward under comparison likes best."""

    labels: int = 0


Recipe = Unchanged | Reinforce | Imitate | Prefer | Choose
"""``labels`` is how many references, human pairs or checker's verdicts the recipe was made from or trains on."""
