"""Score of a reward model: RLHF where people labelled its pairs."""

__all__ = ["reward_model"]

from functools import lru_cache

from torch import Tensor

from cagsr.rewards.reward_model import RewardModel, asked
from cagsr.types import Evidence


def reward_model(evidence: Evidence, *, path: str, revision: str | None = None) -> Tensor:
    """[N] the score of each response by the reward model at ``path`` (a directory or hub name, of ``revision``).

    Range (-inf, inf); higher is better, in the model's own units. A response that was cut off gets no end that it did
    not write. Loaded once; safetensors only.

    Raises InputError as `RewardModel.load` and `RewardModel.score` do.
    """
    rollout = evidence.rollout
    model = _loaded(path, revision)
    model.to(evidence.salience.device)
    prompts = [asked(prompt) for prompt in rollout.prompts for _ in range(rollout.group_size)]
    return model.score(prompts, rollout.responses, finished=rollout.finished.tolist())


@lru_cache(maxsize=1)  # a comparison trains on one after the other
def _loaded(path: str, revision: str | None) -> RewardModel:
    return RewardModel.load(path, revision)
