"""What heads.json of a run says: which heads are read, by layer, and whether they serve. Imports no torch."""

from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["ATTENTION", "ENOUGH", "FOLLOWS", "KNOCKOUT", "Heads", "Layer"]

FOLLOWS = 0.65
"""From which correlation (`rewards.heads.follows`) on the heads are read instead of asking for knockouts. In the lab
notes: .82 on a pretrained model, where attention ranks better than knockout, and .28 to .54 on small ones, where it
ranks worse."""
UNDECIDED = 0.2
"""Share of knockouts near their threshold (`rewards.heads.undecided`) from which on heads are asked at all. Below,
knockouts say clearly what was taken up, and heads that follow them say less. In the lab notes: .07 to .14 on small
models, whose heads follow by up to .70 on some prompts, and more on a pretrained one."""
ENOUGH = 10
"""Pieces that must have told heads from one another: with fewer the correlation is chance."""
ATTENTION, KNOCKOUT = "attention", "knockout"
DECISIONS = {
    ATTENTION: f"attention serves: read heads (reward.preset: {ATTENTION})",
    KNOCKOUT: f"ask for knockouts (reward.preset: {KNOCKOUT})",
    None: "not known (these heads were learnt before it was measured)",
}


class Layer(NamedTuple):
    """What was found of one layer: the mean agreement of its heads, in [-1, 1], and how many of them are read."""

    agreement: float
    read: int
    heads: int


class Heads(BaseModel):
    """Heads as `evaluation.learnt_heads.find_heads` found them.

    Files of earlier versions lack ``follows`` and ``undecided``. ``preset`` is the reward that they decided, where they
    were asked to: None where the config named one.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    all: dict[int, Annotated[list[float], Field(min_length=1)]] = Field(min_length=1)
    weights: dict[int, list[float]]
    agreement: float
    pieces: int
    follows: float | None = None
    undecided: float | None = None
    preset: str | None = None

    @property
    def layers(self) -> dict[int, Layer]:
        """The layers, the lowest first."""
        read = {layer: sum(weight > 0 for weight in row) for layer, row in self.weights.items()}
        return {
            layer: Layer(sum(row) / len(row), read.get(layer, 0), len(row))
            for layer, row in sorted(self.all.items())
        }

    @property
    def advised(self) -> str | None:
        """The preset that the criterion without labels names; None where ``follows`` was not measured."""
        if self.follows is None:
            return None
        serves = self.follows >= FOLLOWS and self.pieces >= ENOUGH and not self._are_clear
        return ATTENTION if serves else KNOCKOUT

    @property
    def _are_clear(self) -> bool:
        """Whether knockouts leave little for heads to tell."""
        return self.undecided is not None and self.undecided < UNDECIDED

    @property
    def reason(self) -> str:
        """Why `advised` is what it is, in words."""
        if self.follows is None:
            return "the file of its heads does not say how well they follow the knockouts"
        if self.pieces < ENOUGH:
            return f"{self.pieces} pieces are too few to tell its heads from one another"
        asked = f"hiding {self.pieces} pieces one after another"
        if self.follows < FOLLOWS:
            return f"its attention agrees too little with {asked} ({self.follows:.2f}; {FOLLOWS} is needed)"
        by = f"its attention agrees with {asked} ({self.follows:.2f}; {FOLLOWS} is needed)"
        if self.undecided is None:
            return by
        share = f"for {self.undecided:.0%} of them ({UNDECIDED:.0%} is needed)"
        if self._are_clear:
            return f"{by}, but hiding leaves it open whether a piece was taken up only {share}"
        return f"{by}, and hiding leaves it open whether a piece was taken up {share}"

    @property
    def decision(self) -> str:
        """What follows for the reward, in words."""
        why = ""
        if self.follows is not None and self.pieces < ENOUGH:
            why = "too few pieces to tell: "
        elif self.follows is not None and self._are_clear:
            why = (
                f"knockouts are clear by themselves ({self.undecided:.0%} undecided, below {UNDECIDED:.0%}): "
            )
        return f"{why}{DECISIONS[self.advised]}"
