"""`cagsr score`: signals and reward of the prompts and responses in a file."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from cagsr.config import Config
from cagsr.data import prompts as data
from cagsr.data import readers as sources
from cagsr.data.row_messages import say_cut, say_rows
from cagsr.distributed.process_group import World, accelerated
from cagsr.errors import InputError, StorageError
from cagsr.evaluation.chosen_reward import choose_reward
from cagsr.evaluation.score import encode_responses, measured, not_compared, only_one, was_finished
from cagsr.evaluation.shown_prompt import say_prompt
from cagsr.io.quiet_libraries import warn
from cagsr.io.template_date import pinned_date
from cagsr.models.build import build_policy
from cagsr.models.policy import Policy
from cagsr.rewards.presets import build_reward, choice_of, settled
from cagsr.rewards.reward import Reward
from cagsr.rewards.salience import Salience
from cagsr.runs.identity import of_configured
from cagsr.tasks.checkers import find_checker
from cagsr.types import Evidence, Prompt, Scores

__all__ = ["score_file"]


@pinned_date()
def score_file(
    config: Config, source: str, console: Console, save_attention: Path | None = None
) -> list[dict[str, Any]]:
    """Score a file: one row out for each usable row in, in order, with prompt, response, signals by name, reward.

    Rows are read as ``data`` says (columns, longest prompt, what to do with rows that cannot be used), and need a
    column ``response``. Where a column ``finished`` is false, or ``truncated`` true, the response was cut off: it gets
    no end token. The console is told of rows that were dropped or cut.

    Rows with the same prompt, wherever they stand, are one group: a term that is standardised within the group
    compares those. The reward of a prompt's single response is then None, which the console is told. ``batch`` is all
    rows.

    The preset `robust` stands for its knockouts: no base is sampled here.

    ``save_attention``: a directory that gets ``row-00001.npz`` with ``A`` [T S] float32, ``prompt_ids`` [S],
    ``response_ids`` [T] and ``layers`` for each row, so that the capture can be checked with other tools.
    """
    limit = config.sampling.max_new_tokens
    if (choice := choice_of(config)) is not None:
        # What others wrote may be a single response a prompt, of which only raw terms can say anything.
        config = settled(config, choice.knockouts)
    reward = build_reward(config.reward, find_checker(config.data))
    rows = _rows(config, source)
    if save_attention is not None:
        _make_directory(save_attention)
    data.refuse_invalid(rows, config.data.skip_invalid)
    policy = build_policy(config)
    policy.to(accelerated().device)
    prompts = _prompts(config, policy, rows, source, console)
    responses = [str(prompt.row["response"]) for prompt in prompts]
    say_cut(console, policy, "responses", responses, limit, "sampling.max_new_tokens")
    salience = _salience(config, policy, reward, prompts, console)
    ended = [was_finished(prompt.row) for prompt in prompts]
    places = [f"{rows[prompt.index].place}: the response" for prompt in prompts]
    encoded = encode_responses(policy, prompts, responses, ended, name=places.__getitem__)

    scores = measured(
        policy,
        prompts,
        [row[:limit] for row in encoded],
        reward,
        salience,
        batch_size=config.train.micro_batch,
        responses=responses,
        seen=save_attention and partial(_save_group, save_attention, prompts, policy.readable.layers),
    )
    return _as_rows(scores, prompts, responses, not_compared(reward, prompts))


def _save_group(
    directory: Path,
    prompts: list[Prompt],
    layers: Sequence[int],
    members: list[int],
    evidence: Evidence,
) -> None:
    """Write the attention of the responses ``members`` to the directory."""
    _save(directory, [prompts[position].index + 1 for position in members], evidence, layers)


def _salience(
    config: Config, policy: Policy, reward: Reward, prompts: list[Prompt], console: Console
) -> Salience:
    """The salience of the config; the policy reads the chosen heads, and the console is told what to look at."""
    model = of_configured(config)
    _, salience, _ = choose_reward(policy, config, prompts, World(accelerated()), console, model=model)
    say_prompt(console, prompts, policy, salience)
    for told in (
        only_one(reward, prompts, "cannot add anything, so that the reward is null"),
        salience.uncovered(prompts),
    ):
        if told is not None:
            warn(console, told)
    return salience


def _as_rows(
    scores: Scores, prompts: list[Prompt], responses: list[str], alone: set[int]
) -> list[dict[str, Any]]:
    return [
        {
            "prompt": prompts[n].text,
            "response": responses[n],
            "signals": dict(zip(scores.names, values, strict=True)),
            "reward": None if n in alone else reward,
        }
        for n, (values, reward) in enumerate(
            zip(scores.signals.tolist(), scores.reward.tolist(), strict=True)
        )
    ]


def _prompts(
    config: Config, policy: Policy, rows: list[sources.Row], source: str, console: Console
) -> list[Prompt]:
    """The prompts of the rows that can be used; the console is told of the others."""
    prompts, report = data.encode(rows, **data.encoding(policy, config.data, config.sampling.max_new_tokens))
    if report.used < report.rows or report.truncated or report.notes or report.remarks:
        say_rows(console, source, report)
    return prompts


def _save(directory: Path, numbers: list[int], evidence: Evidence, layers: Sequence[int]) -> None:
    rollout = evidence.rollout
    for n, number in enumerate(numbers):
        tokens, p = int(rollout.lengths[n]), n // rollout.group_size
        try:
            np.savez(
                directory / f"row-{number:05d}.npz",
                A=evidence.observation.attention[n, :tokens][:, rollout.prompt_mask[p]].cpu().numpy(),
                prompt_ids=np.array(rollout.prompts[p].ids),
                response_ids=rollout.response_ids[n, :tokens].cpu().numpy(),
                layers=np.array(layers),
            )
        except OSError as error:
            raise StorageError(
                f"--save-attention: {directory} cannot be written: {error.strerror}"
            ) from error


def _rows(config: Config, source: str) -> list[sources.Row]:
    """The rows to score; for one without a response that is its problem. References and saliences may be absent."""
    given = config.data
    rows = sources.read(source)
    columns = {name for row in rows for name in row.values}
    reference, salience = (
        name if name in columns else None for name in (given.reference_column, given.salience_column)
    )
    mapped = data.map_columns(rows, given.prompt_column, reference, salience)
    return [row if row.problem else replace(row, problem=_no_response(row)) for row in mapped]


def _no_response(row: sources.Row) -> str | None:
    response = row.values.get("response")
    if not isinstance(response, str):
        found = ", ".join(map(repr, row.values)) or "none"
        return f"'response' must be text; this row's columns: {found}"
    try:
        data.demand_whole("response", response)
        was_finished(row.values)
    except ValueError as error:
        return str(error)
    return None


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise InputError(f"--save-attention: {path} is a file; name a directory") from error
    except OSError as error:
        raise StorageError(f"--save-attention: {path} cannot be made: {error.strerror}") from error
    if any(path.glob("row-*.npz")):
        raise InputError(f"--save-attention: {path} holds row-*.npz files already; name another directory")
