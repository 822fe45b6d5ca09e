"""`Reference`, the policy before training: what it is compared with in the KL penalty, and the default observer."""

import copy
from contextlib import nullcontext
from typing import Any

from torch import Tensor

from cagsr.models.lora import is_fresh
from cagsr.models.policy import Policy
from cagsr.types import EVERYTHING, Observation, Rollout, Wanted

__all__ = ["Reference"]


class Reference:
    """The reference model: the policy before training, default observer and the distribution of the KL penalty.

    With a new LoRA adapter it is the same weights with the adapter off, otherwise a frozen ``copy``. ``shares`` says
    that weights which are frozen anyway are the policy's own in it: of an adapter that has been trained already, the
    adapter alone is there twice.
    """

    def __init__(self, policy: Policy, shares: bool = True):
        model: Any = policy.model
        self._adapter_off = model.disable_adapter if is_fresh(model) else None
        frozen = {id(weight): weight for weight in policy.parameters() if shares and not weight.requires_grad}
        self.copy: Policy | None = None
        if self._adapter_off is None:
            self.copy = copy.deepcopy(policy, frozen).requires_grad_(False)
        self._policy = self.copy or policy

    def observe(self, rollout: Rollout, wanted: Wanted = EVERYTHING) -> Observation:
        """As of `Policy.observe`, by the reference's weights."""
        with self._adapter_off() if self._adapter_off else nullcontext():
            return self._policy.observe(rollout, wanted)

    def logprobs(self, rollout: Rollout) -> Tensor:
        """[N T] as of `Policy.logprobs`, by the reference's weights."""
        with self._adapter_off() if self._adapter_off else nullcontext():
            return self._policy.logprobs(rollout)
