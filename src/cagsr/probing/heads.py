"""What a probe says of learnt heads: the layers they lie in, and whether attention serves or knockouts are needed."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from cagsr.rewards.heads_found import ATTENTION, KNOCKOUT, Heads

__all__ = ["favoured", "heads_as_data"]

# Rewards that say the same, by reading heads and by asking again: between these the heads decide.
DECIDED = (ATTENTION, KNOCKOUT)


def heads_as_data(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What `evaluation.chosen_reward` found of heads, by layer, with what follows; None where all are read.

    None too for a file of one's own that has weights alone: nothing was learnt that could be told.
    """
    try:
        heads = Heads.model_validate(found)
    except ValidationError:
        return None
    layers = [{"layer": layer, **about._asdict()} for layer, about in heads.layers.items()]
    return {
        "follows": heads.follows,
        "undecided": heads.undecided,
        "agreement": heads.agreement,
        "pieces": heads.pieces,
        "preset": heads.advised,
        "decision": heads.decision,
        "layers": layers,
    }


def favoured(heads: Mapping[str, Any] | None, configured: str) -> str:
    """The reward that is advised unless another clearly ranks better: the heads', where it is one of the two theirs."""
    named = None if heads is None else heads["preset"]
    return named if named is not None and configured in DECIDED else configured
