"""`score`: signals and rewards of existing responses, by any model that can be observed."""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cagsr.config.schema import Term
from cagsr.data.in_memory import encode_in_memory
from cagsr.errors import InputError
from cagsr.io.template_date import pinned_date
from cagsr.models.observing import observing
from cagsr.models.policy import Policy
from cagsr.rewards.presets import learns_heads, load_preset, terms_of
from cagsr.rewards.reward import Reward
from cagsr.rewards.salience import Column, Idf, Salience, Uniform, demand_content, evidence_of
from cagsr.types import EVERYTHING, Evidence, Prompt, Scores

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = [
    "chosen_reward",
    "encode_responses",
    "measured",
    "not_compared",
    "only_one",
    "score",
    "was_finished",
]

# How files write true and false.
TOLD = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}

Seen = Callable[[list[int], Evidence], None]


@pinned_date()
def score(
    model: "str | os.PathLike[str] | PreTrainedModel | PeftModel | Policy",
    tokenizer: PreTrainedTokenizerBase | None,
    prompts: Sequence[str | Sequence[Mapping[str, Any]]],
    responses: Sequence[str] | Sequence[Sequence[str]],
    *,
    preset: str | Path = "robust",
    reward: Reward | Sequence[Term] | None = None,
    salience: Salience | Literal["uniform", "idf"] = "uniform",
    layers: str | list[int] = "all",
    temperature: float = 1.0,
    finished: Sequence[bool] | Sequence[Sequence[bool]] | None = None,
    max_new_tokens: int | None = None,
    batch_size: int = 64,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Scores:
    """Score given responses: signals [N C] and reward [N], in their order, as the model sees them; higher is better.

    model      the observer: a name, a loaded model (left as it was), or a `Policy` (probed once, for repeated calls).
    tokenizer  None: the one that lies where the model was loaded from.
    prompts    texts, or conversations as lists of ``{role, content}``, which the chat template renders.
    responses  a text for each prompt, or a list of texts for each; N counts the texts. None of the special tokens.
    preset     name or YAML file of a preset (``robust`` stands for ``knockout``: no base is sampled here);
               ``reward``, a `Reward` or its terms, takes its place.
    salience   which prompt tokens are to be covered; "idf" weighs words by how few of these prompts have them.
    layers, temperature   as of `load_policy`; ``batch_size``: responses in one pass of the model.
    finished   shaped as ``responses``: False for one that was cut off, which then has no end token; None: all ended.
    max_new_tokens        cut responses there, which makes them unfinished; None: each ends where its text ends.
    chat_template_kwargs  variables of the chat template, such as ``{"enable_thinking": False}``.

    Each response is ended as of `Policy.encode`. Responses to equal prompts, wherever they stand, are one group: a term
    that is standardised ``group`` compares those. Of a single one it can tell nothing: its share of the reward is then
    0, and a warning says so. Raises InputError naming the argument that is wrong, UnsupportedModelError for a model
    whose attention cannot be read exactly, and SignalError for a signal that failed.
    """
    chosen = chosen_reward(preset, reward)
    _check_numbers(max_new_tokens, batch_size)
    spread, texts = _paired(prompts, responses)
    ended = _ended(prompts, finished, len(texts))
    with observing(model, tokenizer, layers=layers, temperature=temperature) as policy:
        template, goes_on = dict(chat_template_kwargs or {}), policy.readable.kind == "causal"
        encoded = encode_in_memory(spread, policy.tokenizer, template=template, goes_on=goes_on)
        rows = [row[:max_new_tokens] for row in encode_responses(policy, encoded, texts, ended)]
        refuse_overlong(policy, encoded, rows)
        alone = only_one(chosen, encoded)
        if alone is not None:
            warnings.warn(alone, UserWarning, stacklevel=2)
        weights = _chosen_salience(salience, encoded)
        return measured(policy, encoded, rows, chosen, weights, batch_size=batch_size, responses=texts)


def measured(
    policy: Policy,
    prompts: Sequence[Prompt],
    rows: Sequence[Sequence[int]],
    reward: Reward,
    salience: Salience,
    *,
    batch_size: int,
    responses: Sequence[str] | None = None,
    seen: Seen | None = None,
) -> Scores:
    """Scores of N tokenized responses (``rows``), one to each of N prompts, of which equal ones are a group.

    ``batch`` of a term means all N. ``responses`` are the texts; None: what the tokens spell. ``seen`` is called
    after every pass with the positions of its rows and the evidence.
    """
    groups = _groups(prompts)
    wanted = reward.wanted(salience) if seen is None else EVERYTHING
    signals = torch.zeros(len(prompts), len(reward.terms))
    for part in _passes(_alike(groups, prompts, salience), batch_size):
        members = [position for group in part for position in group]
        texts = None if responses is None else [responses[position] for position in members]
        rollout = policy.given_ids(
            [prompts[group[0]] for group in part], [rows[position] for position in members], texts
        )
        with torch.no_grad():
            evidence = evidence_of(rollout, policy.observe(rollout, wanted), salience, policy)
            signals[members] = reward.measure(evidence).cpu()
        if seen is not None:
            seen(members, evidence)
    return Scores(reward.names, signals, *_combined(reward, signals, groups))


def chosen_reward(preset: str | Path, reward: Reward | Sequence[Term] | None) -> Reward:
    """The reward that is given, or else that of the preset.

    Raises InputError for a preset that reads learnt heads: nobody learns them here.
    """
    if isinstance(reward, Reward):
        return reward
    if reward is None and learns_heads(preset):
        raise InputError(
            f"preset: {str(preset)!r} reads heads that are learnt from a data set's prompts, which `cagsr score` and "
            "training do; name another preset, such as coverage, or give its terms as reward, to read all heads"
        )
    return Reward(load_preset(preset) if reward is None else terms_of(reward))


def _check_numbers(max_new_tokens: int | None, batch_size: int) -> None:
    if max_new_tokens is not None and max_new_tokens < 1:
        raise InputError(
            f"max_new_tokens: {max_new_tokens} is no length; give a number of at least 1, or None"
        )
    if batch_size < 1:
        raise InputError(f"batch_size: {batch_size} is too small; give a number of at least 1")


def _chosen_salience(salience: Salience | str, prompts: Sequence[Prompt]) -> Salience:
    if isinstance(salience, str):
        if salience not in ("uniform", "idf"):
            raise InputError(
                f"salience: {salience!r} is none by name; choose uniform, idf, or give a Salience"
            )
        salience = Uniform() if salience == "uniform" else Idf(prompts)
    demand_content(salience, prompts)
    return salience


def was_finished(row: Mapping[str, Any]) -> bool:
    """Whether a response ended by itself, as its row's ``finished`` or ``truncated`` says; True without either.

    Raises ValueError, with the reason, for a value that is neither true nor false.
    """
    for name, whole in (("finished", True), ("truncated", False)):
        value = row.get(name)
        if value not in (None, ""):
            if (told := TOLD.get(str(value).lower())) is None:
                raise ValueError(f"{name!r} must be true or false, got {value!r:.40}")
            if told != whole:
                return False
    return True


def encode_responses(
    policy: Policy,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    finished: Sequence[bool] | None = None,
    name: Callable[[int], str] = "responses[{}]".format,
) -> list[list[int]]:
    """Token ids of each response, ended as of `Policy.encode`.

    Raises InputError, with the ``name`` of the n-th response, for a text that ends in an end token: it would end twice.
    """
    ends = policy.tokenizer.convert_ids_to_tokens(policy.eos_ids)
    for n, text in enumerate(responses):
        written = next((end for end in ends if text.rstrip().endswith(end)), None)
        if written is not None:
            raise InputError(
                f"{name(n)} ends in {written!r} as text; give it without special tokens, decoded with "
                "skip_special_tokens=True"
            )
    return policy.encode(responses, prompts, finished)


def refuse_overlong(policy: Policy, prompts: Sequence[Prompt], rows: Sequence[Sequence[int]]) -> None:
    """Raise InputError for the first prompt or response that the model has no positions for."""
    causal = policy.readable.kind == "causal"
    for n, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        tokens = len(prompt.ids) + (len(row) if causal else 0)
        if policy.context is not None and tokens > policy.context:
            raise InputError(
                f"prompts[{n}] and its response take {tokens} tokens, and the model's context has {policy.context}; "
                "shorten them, or set max_new_tokens"
            )
        if policy.response_limit is not None and len(row) > policy.response_limit:
            raise InputError(
                f"responses[{n}] has {len(row)} tokens, and the model's decoder positions for {policy.response_limit}; "
                "set max_new_tokens to that or less"
            )


def not_compared(reward: Reward, prompts: Sequence[Prompt]) -> set[int]:
    """The positions of responses that a term would compare with others and cannot: there are none."""
    kinds = {term.standardise for term in reward.terms}
    groups = _groups(prompts) if "group" in kinds else []
    alone = {group[0] for group in groups if len(group) == 1}
    return alone | ({0} if "batch" in kinds and len(prompts) == 1 else set())


def only_one(reward: Reward, prompts: Sequence[Prompt], instead: str = "adds 0") -> str | None:
    """Warning where there are responses `not_compared`, to which a term does this ``instead``; None: no warning."""
    terms = [term.signal for term in reward.terms if term.standardise != "none"]
    alone = not_compared(reward, prompts)
    if not alone:
        return None
    return (
        f"reward: {len(alone)} of {len(_groups(prompts))} prompts have a single response, to which {', '.join(terms)} "
        f"{instead}, because it compares responses to one prompt; give each prompt several, or choose a reward without "
        "standardise: group, such as the preset knockout"
    )


def _paired(
    prompts: Any, responses: Any, name: str = "responses", kind: type = str
) -> tuple[list[Any], list[Any]]:
    """A prompt for each of the N ``responses``, and these. Raises InputError where the two do not fit together."""
    what = {str: "text", bool: "bool"}[kind]
    for given_as, given in (("prompts", prompts), (name, responses)):
        if isinstance(given, str) or not isinstance(given, Sequence):
            raise InputError(
                f"{given_as}: expected a list, got {type(given).__name__}; put a single one in a list"
            )
    if prompts and isinstance(prompts[0], Mapping):
        raise InputError("prompts: expected a list of conversations, got one conversation; put it in a list")
    if len(prompts) != len(responses):
        raise InputError(
            f"{name}: {len(responses)} for {len(prompts)} prompts; give one {what}, or one list of {what}s, for each"
        )
    spread, texts = [], []
    for n, (prompt, given) in enumerate(zip(prompts, responses, strict=True)):
        some = [given] if isinstance(given, kind) else given
        if not isinstance(some, Sequence) or not some or not all(isinstance(each, kind) for each in some):
            raise InputError(f"{name}[{n}]: expected a {what} or a list of {what}s, got {given!r:.60}")
        spread += [prompt] * len(some)
        texts += some
    return spread, texts


def _ended(prompts: Any, finished: Any, responses: int) -> list[bool] | None:
    """Whether each of the N ``responses`` ended by itself. Raises InputError for another number of answers."""
    if finished is None:
        return None
    ended = _paired(prompts, finished, "finished", bool)[1]
    if len(ended) != responses:
        raise InputError(f"finished: {len(ended)} for {responses} responses; give one for each")
    return ended


def _groups(prompts: Sequence[Prompt]) -> list[list[int]]:
    """The positions of equal prompts, group by group in the order of their first."""
    groups: dict[str, list[int]] = {}
    for position, prompt in enumerate(prompts):
        groups.setdefault(prompt.text, []).append(position)
    return list(groups.values())


def _alike(groups: Iterable[list[int]], prompts: Sequence[Prompt], salience: Salience) -> Iterator[list[int]]:
    """The groups, divided where what signals read of a row differs: its references, slots, and a salience's column."""
    names = ["reference", "references", "slots", *([salience.name] if isinstance(salience, Column) else [])]
    for members in groups:
        alike: dict[str, list[int]] = {}
        for position in members:
            alike.setdefault(repr([prompts[position].row.get(name) for name in names]), []).append(position)
        yield from alike.values()


def _passes(groups: Iterable[list[int]], rows: int) -> Iterator[list[list[int]]]:
    """Batches of groups of one size, at most ``rows`` rows each; only a larger group is divided."""
    pieces = [members[start : start + rows] for members in groups for start in range(0, len(members), rows)]
    for size, alike in groupby(sorted(pieces, key=len), key=len):
        equal = list(alike)
        for start in range(0, len(equal), rows // size):
            yield equal[start : start + rows // size]


def _combined(reward: Reward, signals_NC: Tensor, groups: Iterable[list[int]]) -> tuple[Tensor, Tensor]:
    """[N] rewards of groups of any sizes, and [N C] what each signal added.

    A column of zeros adds nothing, however it is standardised.
    """
    over_batch = torch.tensor([term.standardise == "batch" for term in reward.terms])
    rewards, weighted = (combine(signals_NC * over_batch, 1) for combine in (reward.combine, reward.weighted))
    for members in groups:
        own = signals_NC[members] * ~over_batch
        rewards[members] += reward.combine(own, len(members))
        weighted[members] += reward.weighted(own, len(members))
    return rewards, weighted
