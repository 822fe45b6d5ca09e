"""`cagsr score`: signals and reward of prompts and responses that exist already, by any model."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cagsr import data, sources
from cagsr.errors import InputError, StorageError
from cagsr.policy.policy import Policy
from cagsr.reward import Reward
from cagsr.salience import Salience
from cagsr.types import Evidence, Prompt

__all__ = ["score"]


def score(
    source: str,
    policy: Policy,
    reward: Reward,
    salience_of: Callable[[list[Prompt]], Salience],
    *,
    max_response_tokens: int,
    save_attention: Path | None = None,
) -> list[dict[str, Any]]:
    """One row out for each row in, in order: prompt, response, signals by name, reward.

    Rows with the same prompt, wherever they stand, are one group: a term that is standardised within the group
    compares those, and a prompt with a single response gets 0 for such a term. ``batch`` is all rows.

    ``save_attention``: a directory that gets ``row-00001.npz`` with ``A`` [T S] float32, ``prompt_ids`` [S],
    ``response_ids`` [T] and ``layers`` for each row, so that the capture can be checked with other tools.
    """
    rows = data.map_columns(sources.read(source))
    responses = [_response(row) for row in rows]
    causal = policy.readable.kind == "causal"
    prompts, _ = data.encode(
        rows, policy.tokenizer, context=policy.context, new_tokens=max_response_tokens if causal else 0
    )
    if save_attention is not None:
        _make_directory(save_attention)
    salience = salience_of(prompts)
    groups: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(prompt.text, []).append(index)
    signals = torch.zeros(len(rows), len(reward.terms))
    for members in groups.values():
        rollout = policy.given(
            [prompts[members[0]]], [responses[index] for index in members], max_response_tokens
        )
        with torch.no_grad():
            evidence = Evidence(rollout, policy.observe(rollout), salience(rollout))
            signals[members] = reward.measure(evidence).cpu()
        if save_attention is not None:
            _save(save_attention, members, evidence, policy.readable.layers)
    rewards = _combined(reward, signals, groups.values())
    return [
        {
            "prompt": prompt.text,
            "response": response,
            "signals": dict(zip(reward.names, values, strict=True)),
            "reward": total,
        }
        for prompt, response, values, total in zip(
            prompts, responses, signals.tolist(), rewards.tolist(), strict=True
        )
    ]


def _combined(reward: Reward, signals_NC: Tensor, groups: Iterable[list[int]]) -> Tensor:
    """[N] rewards of groups of any sizes. A column of zeros adds nothing, however it is standardised."""
    over_batch = torch.tensor([term.standardise == "batch" for term in reward.terms])
    rewards = reward.combine(signals_NC * over_batch, 1)
    for members in groups:
        rewards[members] += reward.combine(signals_NC[members] * ~over_batch, len(members))
    return rewards


def _save(directory: Path, members: list[int], evidence: Evidence, layers: Sequence[int]) -> None:
    rollout = evidence.rollout
    for n, index in enumerate(members):
        tokens = int(rollout.lengths[n])
        try:
            np.savez(
                directory / f"row-{index + 1:05d}.npz",
                A=evidence.observation.attention[n, :tokens].cpu().numpy(),
                prompt_ids=np.array(rollout.prompts[0].ids),
                response_ids=rollout.response_ids[n, :tokens].cpu().numpy(),
                layers=np.array(layers),
            )
        except OSError as error:
            raise StorageError(
                f"--save-attention: {directory} cannot be written: {error.strerror}"
            ) from error


def _response(row: sources.Row) -> str:
    if row.problem and not row.values:
        raise InputError(f"{row.place}: {row.problem}.")
    response = row.values.get("response")
    if not isinstance(response, str):
        found = ", ".join(map(repr, row.values)) or "none"
        raise InputError(f"{row.place}: 'response' must be text; this row's columns: {found}.")
    return response


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise InputError(f"--save-attention: {path} is a file; name a directory") from error
    except OSError as error:
        raise StorageError(f"--save-attention: {path} cannot be made: {error.strerror}") from error
