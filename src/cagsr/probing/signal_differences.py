"""Pairs of a better and a worse response, as differences of a reward's signals: what `cagsr calibrate` fits."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from cagsr.config import Config
from cagsr.data import preferences
from cagsr.data import prompts as data
from cagsr.data import readers as sources
from cagsr.data.corruptions import CONTRASTS
from cagsr.data.row_messages import say_cut, say_rows
from cagsr.errors import InputError
from cagsr.models.policy import Policy
from cagsr.rewards.calibration import Pairs
from cagsr.rewards.reward import SMALLEST_UNIT, Reward
from cagsr.types import Prompt, Rollout

__all__ = ["Measure", "Ruler", "contrast_pairs", "labelled_pairs", "read_labelled"]

Measure = Callable[[Rollout], Tensor]


@dataclass(frozen=True)
class Ruler:
    """units [C]: what one of a term's weight is worth, 1 where it is raw; spreads [C]: the base's, in those units."""

    units: np.ndarray
    spreads: np.ndarray

    @classmethod
    def of(cls, signals: Tensor, candidates: int, reward: Reward) -> "Ruler":
        units = reward.spread(signals, candidates).numpy()
        within = signals.double().view(-1, candidates, len(units)).var(1, correction=0).mean(0).sqrt()
        return cls(units, within.clamp(min=SMALLEST_UNIT).numpy() / units)


def contrast_pairs(
    config: Config, policy: Policy, prompts: Sequence[Prompt], reward: Reward, measure: Measure
) -> tuple[Ruler, Pairs]:
    """How the signals are measured, and pairs of the base's own responses against the same made worse."""
    sampling, seed = config.sampling, config.train.seed
    sampled_signals: list[Tensor] = []
    own: list[list[str]] = []
    for part in _parts(prompts, config.train.micro_batch // sampling.candidates):
        greedy = policy.sample(part, sampling.greedy(), seed)
        sampled = policy.sample(part, sampling, seed)
        sampled_signals.append(measure(sampled).cpu())
        firsts = sampled.responses[:: sampled.group_size]
        own += [list(dict.fromkeys(texts)) for texts in zip(greedy.responses, firsts, strict=True)]
    ruler = Ruler.of(torch.cat(sampled_signals), sampling.candidates, reward)
    groups = []
    for number, prompt in enumerate(prompts):
        other = (number + 1) % len(prompts)
        random = Random(f"{seed} {prompt.index}")
        for text in own[number]:
            made = {
                kind: contrast(text, prompt.text, own[other][0], prompts[other].text, random)
                for kind, contrast in CONTRASTS.items()
            }
            groups.append((prompt, text, _within(policy, made, sampling.max_new_tokens)))
    return ruler, _pairs(config, policy, groups, measure, ruler)


def _within(policy: Policy, made: dict[str, str | None], limit: int) -> dict[str, str]:
    """Those that there is room for: one that must be cut would be unfinished too, which is another fault."""
    texts = {kind: text for kind, text in made.items() if text is not None}
    rows = policy.encode(list(texts.values())) if texts else []
    return {kind: text for (kind, text), row in zip(texts.items(), rows, strict=True) if len(row) <= limit}


def read_labelled(config: Config, source: str, labels: int | None) -> list[sources.Row]:
    """Rows of pairs as `preferences.pair_rows`: all of them, or ``labels`` that can be used, drawn by the seed."""
    rows = preferences.pair_rows(source)
    data.refuse_invalid(rows, config.data.skip_invalid)
    if labels is None:
        return rows
    usable = [row for row in rows if not row.problem]
    if labels > len(usable):
        raise InputError(f"--labels: {source} has {len(usable)} pairs, fewer than {labels}; lower --labels")
    return Random(f"labels {config.train.seed}").sample(usable, labels)


def labelled_pairs(
    config: Config,
    policy: Policy,
    rows: Sequence[sources.Row],
    measure: Measure,
    ruler: Ruler,
    console: Console,
) -> Pairs:
    """Labelled pairs as differences. Prompts are encoded as all others are."""
    how = data.encoding(policy, config.data, config.sampling.max_new_tokens)
    labelled, report = preferences.encoded_pairs(rows, **how)
    say_rows(console, "pairs", report)
    texts = [text for pair in labelled for text in (pair.chosen, pair.rejected)]
    say_cut(
        console,
        policy,
        "responses of pairs",
        texts,
        config.sampling.max_new_tokens,
        "sampling.max_new_tokens",
    )
    # Pairs of one prompt must stay in one fold, and every row of a file has an index of its own.
    first = {pair.prompt.text: pair.prompt for pair in reversed(labelled)}
    groups = [(first[pair.prompt.text], pair.chosen, {"labelled": pair.rejected}) for pair in labelled]
    return _pairs(config, policy, groups, measure, ruler)


def _pairs(
    config: Config,
    policy: Policy,
    groups: Sequence[tuple[Prompt, str, dict[str, str]]],
    measure: Measure,
    ruler: Ruler,
) -> Pairs:
    """The differences between each prompt's better response and its worse ones, by what made them worse."""
    size = 1 + max((len(worse) for _, _, worse in groups), default=0)
    differences, prompts, kinds = [], [], []
    for part in _parts(groups, config.train.micro_batch // size):
        # A group that has fewer is filled with its better response, which is then not looked at.
        texts = [[better, *worse.values(), *[better] * (size - 1 - len(worse))] for _, better, worse in part]
        asked = [prompt for prompt, _, _ in part]
        rollout = policy.given(asked, [text for row in texts for text in row], config.sampling.max_new_tokens)
        signals = measure(rollout).cpu().double().numpy().reshape(len(part), size, -1)
        for (prompt, _, worse), measured in zip(part, signals, strict=True):
            for position, kind in enumerate(worse):
                differences.append((measured[0] - measured[1 + position]) / ruler.units)
                prompts.append(prompt.index)
                kinds.append(kind)
    table = np.array(differences).reshape(-1, len(ruler.units))
    return Pairs(table, np.array(prompts), np.array(kinds), ruler.spreads)


def _parts(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), max(1, size)):
        yield list(items[start : start + max(1, size)])
