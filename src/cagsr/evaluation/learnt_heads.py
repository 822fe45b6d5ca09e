"""The heads that `reward.heads` names: found from the base's own responses to a few prompts, or read from a file."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from cagsr.config.schema import Sampling
from cagsr.errors import InputError
from cagsr.io.atomic_write import write_atomically
from cagsr.models.policy import Policy
from cagsr.rewards.heads import agreement, best_heads, follows, looks, undecided
from cagsr.rewards.salience import Salience
from cagsr.rewards.segments import knockout
from cagsr.runs.directory import HEADS
from cagsr.types import Evidence, Prompt, Wanted

__all__ = [
    "HEADS",
    "NothingToldError",
    "find_heads",
    "keep_heads",
    "prompts_for_heads",
    "read_file",
    "read_heads",
]

PROMPTS = 4
"""Prompts that heads are found on: the ranking of heads hardly changes with more (docs/lab-notes.md)."""


class NothingToldError(InputError):
    """The base's responses do not tell one head from another; ``why`` says so without place and mend."""

    def __init__(
        self, message: str, why: str = ""
    ) -> None:  # with one argument, as processes hand errors over
        super().__init__(message)
        self.why = why

    @classmethod
    def because(cls, why: str, mend: str) -> "NothingToldError":
        return cls(f"reward.heads: {why}. {mend}", why)


def read_heads(policy: Policy, found: Mapping[str, Any], name: str) -> None:
    """Let the policy read the heads that were ``found``, as of `find_heads`; ``name`` says where.

    Raises InputError for what is none of heads, or not of this model.
    """
    if "weights" not in found:
        raise InputError(
            f"reward.heads: {name} names no heads to read, as of a run whose base told none apart. Set reward.heads to "
            "learn, to all, or to a file that names some."
        )
    try:
        weights = {int(layer): row for layer, row in found["weights"].items()}
        policy.readable = policy.readable.weighted(weights)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(
            f"reward.heads: {name} does not fit this model: {error}. Set reward.heads to learn, or to a file that "
            "was learnt with it."
        ) from error


def keep_heads(found: Mapping[str, Any] | None, kept: Path) -> None:
    """Write what was found of heads, if anything was, beside the run; what says the same already stays."""
    text = json.dumps(found, indent=1) + "\n"
    if found is not None and not (kept.exists() and kept.read_text(encoding="utf-8") == text):
        write_atomically(kept, text)


def prompts_for_heads(prompts: Sequence[Prompt], seed: int) -> list[Prompt]:
    """The prompts that heads are found on, a function of ``seed``."""
    return Random(f"heads {seed}").sample(list(prompts), min(PROMPTS, len(prompts)))


def find_heads(
    policy: Policy,
    prompts: Sequence[Prompt],
    salience: Salience,
    sampling: Sampling,
    *,
    seed: int,
    begins: Callable[[int], object] = lambda number: None,
) -> dict[str, Any]:
    """Find the heads that tell what responses took up of their prompts (`rewards.heads`), without labels.

    For `prompts_for_heads` the policy samples ``sampling.candidates`` responses each and is asked again without every
    piece: a pass a piece; ``begins`` is told the number of each prompt. Returns, ready for JSON, ``weights`` (layer ->
    a weight per head), ``follows`` and ``undecided`` (`rewards.heads`, of these heads on these prompts), ``agreement``
    (mean rank correlation of the chosen heads within a piece), ``pieces`` that were counted, and ``all`` (layer -> that
    of every head).

    Raises NothingToldError where responses differ in no piece, or no head agrees.
    """
    asked = []
    for number, prompt in enumerate(prompts_for_heads(prompts, seed), start=1):
        begins(number)
        asked.append(_asked(policy, prompt, salience, sampling, seed))
    counted = sum(pieces for *_, pieces in asked)
    if not counted:
        raise NothingToldError.because(
            "the base's responses to one prompt never differ in what they take up, so no head can be told from another",
            "Set reward.heads to all, or raise sampling.temperature or sampling.candidates.",
        )
    means = {
        layer: (torch.stack([sums[layer] for _, _, sums, _ in asked]).sum(0) / counted).tolist()
        for layer in asked[0][0]
    }
    try:
        weights = best_heads(means)
    except ValueError as error:
        raise NothingToldError.because(str(error), "Set reward.heads to all.") from error
    agreed = [
        value for layer, row in weights.items() for value, one in zip(means[layer], row, strict=True) if one
    ]
    lost = [of_prompt for _, of_prompt, _, _ in asked]
    return {
        "follows": follows([_mean_look(looked, weights) for looked, *_ in asked], lost),
        "undecided": undecided(lost),
        "agreement": sum(agreed) / len(agreed),
        "pieces": counted,
        "weights": weights,
        "all": means,
    }


def _mean_look(looked: Mapping[int, Tensor], weights: Mapping[int, Sequence[float]]) -> Tensor:
    """[N J] how strongly the heads that are read look, of looks by layer [H N J]."""
    return torch.cat([looked[layer][torch.tensor(row) > 0] for layer, row in weights.items()]).mean(0)


def _asked(
    policy: Policy, prompt: Prompt, salience: Salience, sampling: Sampling, seed: int
) -> tuple[dict[int, Tensor], Tensor, dict[int, Tensor], int]:
    """Of one prompt: looks by layer [H N J], knockouts [N J], agreement by layer [H], and how many pieces count."""
    rollout = policy.sample([prompt], sampling, seed=seed)
    pieces_PJS = salience.pieces(rollout.prompts, rollout.prompt_mask)
    # Of what is observed the knockout takes log-probabilities alone.
    seen = policy.observe(rollout, Wanted(by_token=False, prompt_logprobs=False, pieces=salience.pieces))
    evidence = Evidence(rollout, seen, salience(rollout), policy, pieces_PJS)
    looked = {layer: look.cpu() for layer, look in looks(policy, evidence).items()}
    agreed = {layer: agreement(look.to(policy.device), evidence) for layer, look in looked.items()}
    pieces = next(iter(agreed.values()))[1]
    return (
        looked,
        knockout(evidence).sum(1).cpu(),
        {layer: sums.cpu() for layer, (sums, _) in agreed.items()},
        pieces,
    )


def read_file(path: Path, mend: str = "Give all, learn, or the heads.json of a run.") -> dict[str, Any]:
    """What a file says of heads. Raises InputError, with the ``mend``, for one that is no object of JSON."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no object")
        return found
    except (OSError, ValueError) as error:
        raise InputError(f"reward.heads: {path} is no file of heads: {error}. {mend}") from error
