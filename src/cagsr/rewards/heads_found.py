"""What heads.json of a run says: which heads are read, by layer, and whether they serve. Imports no torch."""

from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["FOLLOWS", "Heads", "Layer"]

FOLLOWS = 0.65
"""From which correlation (`rewards.heads.follows`) on the heads are read instead of asking for knockouts. In the lab
notes: .82 on a pretrained model, where attention ranks better than knockout, and .28 to .54 on small ones, where it
ranks worse."""
DECISIONS = {
    "attention": "attention serves: read heads (reward.preset: attention)",
    "robust": "ask for knockouts (reward.preset: robust)",
    None: "not known (these heads were learnt before it was measured)",
}


class Layer(NamedTuple):
    """What was found of one layer: the mean agreement of its heads, in [-1, 1], and how many of them are read."""

    agreement: float
    read: int
    heads: int


class Heads(BaseModel):
    """Heads as `evaluation.learnt_heads.find_heads` found them. Files of earlier versions lack ``follows``."""

    model_config = ConfigDict(allow_inf_nan=False)

    all: dict[int, Annotated[list[float], Field(min_length=1)]] = Field(min_length=1)
    weights: dict[int, list[float]]
    agreement: float
    pieces: int
    follows: float | None = None

    @property
    def layers(self) -> dict[int, Layer]:
        """The layers, the lowest first."""
        read = {layer: sum(weight > 0 for weight in row) for layer, row in self.weights.items()}
        return {
            layer: Layer(sum(row) / len(row), read.get(layer, 0), len(row))
            for layer, row in sorted(self.all.items())
        }

    @property
    def preset(self) -> str | None:
        """The preset that the criterion without labels names; None where ``follows`` was not measured."""
        return None if self.follows is None else "attention" if self.follows >= FOLLOWS else "robust"

    @property
    def decision(self) -> str:
        """What follows for the reward, in words."""
        return DECISIONS[self.preset]
