"""Random reward: the control that shows what training alone does."""

__all__ = ["random_reward"]

import hashlib

from torch import Tensor

from cagsr.types import Evidence


def random_reward(evidence: Evidence, *, seed: int = 0) -> Tensor:
    """[N] uniform in [0, 1), a hash of ``seed``, the prompt's index and occurrence, and the response's text.

    Range [0, 1); higher is better by chance. The same text to the same prompt gets the same number in any batch.

    Source: the random rewards of arXiv 2506.10947, which raised scores by themselves.
    """
    rollout = evidence.rollout
    values = []
    for row, response in enumerate(rollout.responses):
        prompt = rollout.prompts[row // rollout.group_size]
        lot = f"{seed} {prompt.index} {prompt.occurrence} {response}".encode("utf-8", "surrogatepass")
        # As many bits as float32 holds exactly, or the largest would be rounded up to 1.
        values.append(int.from_bytes(hashlib.sha256(lot).digest()[:3]) / 2**24)
    return evidence.salience.new_tensor(values)
