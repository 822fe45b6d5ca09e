"""`cagsr score`: signals and reward of prompts and responses that exist already, by any model."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

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
    salience: Salience,
    *,
    max_response_tokens: int,
    save_attention: Path | None = None,
) -> Iterator[dict[str, Any]]:
    """One row out for each row in, in order: prompt, response, signals by name, reward.

    Rows that follow each other with the same prompt are one group: a reward whose terms are standardised within
    the group compares those, and a prompt with a single response gets 0 for such terms.

    ``save_attention``: a directory that gets ``row-00001.npz`` with ``A`` [T S] float32, ``prompt_ids`` [S],
    ``response_ids`` [T] and ``layers`` for each row, so that the capture can be checked with other tools.
    """
    rows = data.map_columns(sources.read(source))
    responses = [_response(row) for row in rows]
    prompts, _ = data.encode(rows, policy.tokenizer)
    if save_attention is not None:
        _make_directory(save_attention)
    pairs = list(zip(prompts, responses, strict=True))
    for text, group in groupby(pairs, key=lambda pair: pair[0].text):
        members = list(group)
        yield from _score_group(text, members, policy, reward, salience, max_response_tokens, save_attention)


def _score_group(
    text: str,
    members: list[tuple[Prompt, str]],
    policy: Policy,
    reward: Reward,
    salience: Salience,
    limit: int,
    save_attention: Path | None,
) -> Iterator[dict[str, Any]]:
    prompt = members[0][0]
    rollout = policy.given([prompt], [response for _, response in members], limit)
    with torch.no_grad():
        evidence = Evidence(rollout, policy.observe(rollout), salience(rollout))
        signals = reward.measure(evidence)
    rewards = reward.combine(signals, rollout.group_size)
    for n, (member, response) in enumerate(members):
        if save_attention is not None:
            tokens = int(rollout.lengths[n])
            np.savez(
                save_attention / f"row-{member.index + 1:05d}.npz",
                A=evidence.observation.attention[n, :tokens].cpu().numpy(),
                prompt_ids=np.array(prompt.ids),
                response_ids=rollout.response_ids[n, :tokens].cpu().numpy(),
                layers=np.array(policy.readable.layers),
            )
        yield {
            "prompt": text,
            "response": response,
            "signals": dict(zip(reward.names, signals[n].tolist(), strict=True)),
            "reward": float(rewards[n]),
        }


def _response(row: sources.Row) -> str:
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
