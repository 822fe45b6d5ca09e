"""Policy losses per token, one a file, found by name.

A loss is ``(logprobs, old_logprobs, advantages, mask, *, options) -> PolicyLoss``, all [N T]: ``old_logprobs`` are of
the policy that sampled, ``mask`` says which tokens are real. A new one is a file and a line in LOSSES; a user's own is
named by its dotted path and needs neither.
"""

from collections.abc import Callable
from functools import partial

from cagsr.config.named import checked_options, find
from cagsr.config.schema import Loss
from cagsr.training.policy_losses.clipped import clipped
from cagsr.types import PolicyLoss

__all__ = ["LOSSES", "find_loss"]

LOSSES: dict[str, Callable[..., PolicyLoss]] = {"clipped": clipped}
ARGUMENTS = "logprobs, old_logprobs, advantages, mask"


def find_loss(loss: Loss) -> Callable[..., PolicyLoss]:
    """Find the loss that ``algorithm.loss`` names, and bind its options. Raises InputError for unknown ones."""
    function = find("policy loss", loss.name, LOSSES, ARGUMENTS)
    return partial(function, **checked_options("policy loss", loss.name, function, loss.options, ARGUMENTS))
