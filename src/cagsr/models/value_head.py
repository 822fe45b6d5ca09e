"""The critic: a value head on the policy's own last hidden states."""

import torch
from torch import Tensor, nn

__all__ = ["ValueHead"]


class ValueHead(nn.Module):
    """Value head: [N T D] hidden states -> [N T] values in float32, 0 before training.

    The hidden state that predicts token t gives the value of the response before token t is written. The trunk is
    shared with the policy, as in arXiv 1909.08593; starting at exactly 0 makes the first advantages those of a
    policy without a critic instead of noise.
    """

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.linear(hidden.to(self.linear.weight.dtype)).squeeze(-1).to(torch.float32)
