"""AttentionCall: what one attention module asks to be computed, as one value."""

from dataclasses import dataclass

from torch import Tensor, nn

__all__ = ["AttentionCall"]


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One ``softmax(scaling * query key^T + mask + position_bias) value``.

    Axes: N rows, H heads, G heads of keys that H is a multiple of, Q queries and K keys of a row.

    module         the attention module that calls; its settings tell transformers' sdpa how heads share keys
    query          [N H Q D]
    key, value     [N G K D], [N G K E]
    scaling        what products of queries and keys are multiplied by
    mask           [1|N 1|H 1|Q K]: bool, True where a query sees a key, or a float that is added to the scores
    position_bias  [1|N H Q K]: float, added to the scores; T5's
    dropout        the share of weights that is set to 0, in [0, 1)
    is_causal      without a mask: a query sees itself and the keys before it
    window         how many positions back a token sees, itself included; None: all. For tokens that share a prompt: any
                   other mask has it already
    responses      how many responses of a group stand one after another in a row of queries (see `rows.fold`)
    """

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float
    mask: Tensor | None = None
    position_bias: Tensor | None = None
    dropout: float = 0.0
    is_causal: bool = False
    window: int | None = None
    responses: int = 1
