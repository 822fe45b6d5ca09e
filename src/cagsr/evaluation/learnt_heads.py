"""The heads that `reward.heads` names: found from the base's own responses to a few prompts, or read from a file."""

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from cagsr.config import Config
from cagsr.config.schema import Sampling
from cagsr.errors import InputError
from cagsr.io.atomic_write import write_atomically
from cagsr.models.policy import Policy
from cagsr.rewards.heads import agreement, best_heads, follows, looks
from cagsr.rewards.heads_found import Heads
from cagsr.rewards.presets import as_read
from cagsr.rewards.salience import Salience, evidence_of
from cagsr.rewards.segments import knockout
from cagsr.runs.directory import HEADS
from cagsr.types import Prompt

__all__ = ["HEADS", "choose_heads", "find_heads", "keep_heads", "said_of"]

PROMPTS = 4
"""Prompts that heads are found on: the ranking of heads hardly changes with more (docs/lab-notes.md)."""


def choose_heads(
    policy: Policy, config: Config, prompts: Sequence[Prompt], salience: Salience, kept: Path | None = None
) -> dict[str, Any] | None:
    """Let the policy read the heads that ``reward.heads``, or the preset, names; returns them, None where it reads all.

    What "learn" found the caller keeps (`keep_heads`) in the file ``kept``, if it has a place for one: where it exists
    it is read, so that a run goes on with the same heads.

    Raises InputError for a file that is none of heads, or not of this model.
    """
    heads = str(as_read(config).reward.heads)
    if heads == "all":
        return None
    path = Path(heads) if heads != "learn" else kept
    if path is None or (heads == "learn" and not path.exists()):
        found = find_heads(policy, prompts, salience, config.sampling, seed=config.train.seed)
    else:
        found = _read(path)
    try:
        weights = {int(layer): row for layer, row in found["weights"].items()}
        policy.readable = policy.readable.weighted(weights)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(
            f"reward.heads: {path} does not fit this model: {error}. Set reward.heads to learn, or to a file that "
            "was learnt with it."
        ) from error
    return found


def keep_heads(found: dict[str, Any] | None, kept: Path) -> None:
    """Write what `choose_heads` returned, if anything, beside the run; what is there already stays."""
    if found is not None and not kept.exists():
        write_atomically(kept, json.dumps(found, indent=1) + "\n")


def said_of(found: dict[str, Any]) -> str:
    """What a run says of its heads: how many are read, how well they follow the knockouts, and what that advises."""
    heads = Heads.model_validate(found)
    read = sum(layer.read for layer in heads.layers.values())
    followed = "" if heads.follows is None else f", which they follow by {heads.follows:.2f} (at most 1)"
    return (
        f"heads: {read} are read, found by knockouts of {heads.pieces} pieces{followed}. Without labels that says: "
        f"{heads.decision}"
    )


def find_heads(
    policy: Policy, prompts: Sequence[Prompt], salience: Salience, sampling: Sampling, *, seed: int
) -> dict[str, Any]:
    """Find the heads that tell what responses took up of their prompts (`rewards.heads`), without labels.

    For `PROMPTS` of the prompts (a function of ``seed``) the policy samples ``sampling.candidates`` responses each and
    is asked again without every piece: a pass a piece. Returns, ready for JSON, ``weights`` (layer -> a weight per
    head), ``follows`` (`rewards.heads.follows`, of these heads on these prompts), ``agreement`` (mean rank correlation
    of the chosen heads within a piece), ``pieces`` that were counted, and ``all`` (layer -> that of every head).

    Raises InputError where responses differ in no piece, or no head agrees.
    """
    chosen = Random(f"heads {seed}").sample(list(prompts), min(PROMPTS, len(prompts)))
    asked = [_asked(policy, prompt, salience, sampling, seed) for prompt in chosen]
    counted = sum(pieces for *_, pieces in asked)
    if not counted:
        raise InputError(
            "reward.heads: the base's responses to one prompt never differ in what they take up, so no head "
            "can be told from another. Set reward.heads to all, or raise sampling.temperature or sampling.candidates."
        )
    means = {
        layer: (torch.stack([sums[layer] for _, _, sums, _ in asked]).sum(0) / counted).tolist()
        for layer in asked[0][0]
    }
    try:
        weights = best_heads(means)
    except ValueError as error:
        raise InputError(f"reward.heads: {error}. Set reward.heads to all.") from error
    agreed = [
        value for layer, row in weights.items() for value, one in zip(means[layer], row, strict=True) if one
    ]
    looked = [
        torch.cat([of_prompt[layer][torch.tensor(row) > 0] for layer, row in weights.items()]).mean(0)
        for of_prompt, *_ in asked
    ]
    return {
        "follows": follows(looked, [lost for _, lost, _, _ in asked]),
        "agreement": sum(agreed) / len(agreed),
        "pieces": counted,
        "weights": weights,
        "all": means,
    }


def _asked(
    policy: Policy, prompt: Prompt, salience: Salience, sampling: Sampling, seed: int
) -> tuple[dict[int, Tensor], Tensor, dict[int, Tensor], int]:
    """Of one prompt: looks by layer [H N J], knockouts [N J], agreement by layer [H], and how many pieces count."""
    rollout = policy.sample([prompt], sampling, seed=seed)
    evidence = evidence_of(rollout, policy.observe(rollout), salience, policy)
    looked = {layer: look.cpu() for layer, look in looks(policy, evidence).items()}
    agreed = {layer: agreement(look.to(policy.device), evidence) for layer, look in looked.items()}
    pieces = next(iter(agreed.values()))[1]
    return (
        looked,
        knockout(evidence).sum(1).cpu(),
        {layer: sums.cpu() for layer, (sums, _) in agreed.items()},
        pieces,
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no object")
        return found
    except (OSError, ValueError) as error:
        raise InputError(
            f"reward.heads: {path} is no file of heads: {error}. Give all, learn, or the heads.json of a run."
        ) from error
