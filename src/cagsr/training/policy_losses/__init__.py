"""Policy losses per token, one a file, found by name.

A loss is ``(logprobs, old_logprobs, advantages, mask, *, options) -> PolicyLoss``, all [N T]: ``old_logprobs`` are of
the policy that sampled, ``mask`` says which tokens are real. A new one is a file and a line in
`cagsr.config.registry`; a user's own is named by its dotted path and needs neither.
"""

from collections.abc import Callable
from functools import partial

from cagsr.config import registry
from cagsr.config.named import checked_options, find
from cagsr.config.schema import Loss
from cagsr.types import PolicyLoss

__all__ = ["find_loss"]

ARGUMENTS = "logprobs, old_logprobs, advantages, mask"


def find_loss(loss: Loss) -> Callable[..., PolicyLoss]:
    """The loss that ``algorithm.loss`` names, with its options. Raises InputError for an unknown name or option."""
    known = {name: registry.load(path) for name, path in registry.POLICY_LOSSES.items()}
    function = find("policy loss", loss.name, known, ARGUMENTS)
    return partial(function, **checked_options("policy loss", loss.name, function, loss.options, ARGUMENTS))
