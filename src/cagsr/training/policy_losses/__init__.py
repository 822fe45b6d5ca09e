"""Policy losses per token, one a file, found by name.

A loss is ``(logprobs, old_logprobs, advantages, mask, *, options) -> PolicyLoss``, all [N T]: ``old_logprobs`` are of
the policy that sampled, ``mask`` says which tokens are real. A new one is a file and a line in
`cagsr.config.registry`; a user's own is named by its dotted path and needs neither.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from cagsr.config import registry
from cagsr.config.named import checked_options, find
from cagsr.config.schema import Loss
from cagsr.errors import CagsrError, SignalError, ran_out_of_memory
from cagsr.types import PolicyLoss

__all__ = ["find_loss"]

ARGUMENTS = "logprobs, old_logprobs, advantages, mask"


def find_loss(loss: Loss) -> Callable[..., PolicyLoss]:
    """The loss that ``algorithm.loss`` names, with its options. Raises InputError for an unknown name or option."""
    known = {name: registry.load(path) for name, path in registry.POLICY_LOSSES.items()}
    function = find("policy loss", loss.name, known, ARGUMENTS)
    bound = partial(function, **checked_options("policy loss", loss.name, function, loss.options, ARGUMENTS))

    def checked(logprobs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> PolicyLoss:
        try:
            found = bound(logprobs, old, advantages, mask)
        except CagsrError:
            raise
        except Exception as error:
            if ran_out_of_memory(error):
                raise
            raise SignalError(f"policy loss {loss.name!r} failed: {type(error).__name__}: {error}") from error
        shapes = (
            [list(part.shape) for part in found] if isinstance(found, PolicyLoss) else type(found).__name__
        )
        if shapes != [list(logprobs.shape)] * 2:
            raise SignalError(
                f"policy loss {loss.name!r} returned {shapes}; it must return a PolicyLoss of two tensors of shape "
                f"{list(logprobs.shape)}, a number for each token"
            )
        return found

    return checked
