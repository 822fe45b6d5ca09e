"""`Reference`, the policy before training: what it is compared with in the KL penalty, and the default observer."""

import copy
from contextlib import nullcontext

from torch import Tensor

from cagsr.models.policy import Policy
from cagsr.types import EVERYTHING, Observation, Rollout, Wanted

__all__ = ["Reference"]


class Reference:
    """The reference model: the policy before training, default observer and the distribution of the KL penalty.

    With LoRA it is the same weights with the adapter off, otherwise a frozen ``copy``.
    """

    def __init__(self, policy: Policy):
        self._adapter_off = getattr(policy.model, "disable_adapter", None)
        adapted = self._adapter_off is not None
        self.copy: Policy | None = None if adapted else copy.deepcopy(policy).requires_grad_(False)
        self._policy = self.copy or policy

    def observe(self, rollout: Rollout, wanted: Wanted = EVERYTHING) -> Observation:
        """As of `Policy.observe`, by the reference's weights."""
        with self._adapter_off() if self._adapter_off else nullcontext():
            return self._policy.observe(rollout, wanted)

    def logprobs(self, rollout: Rollout) -> Tensor:
        """[N T] as of `Policy.logprobs`, by the reference's weights."""
        with self._adapter_off() if self._adapter_off else nullcontext():
            return self._policy.logprobs(rollout)
