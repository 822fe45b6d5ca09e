"""Data splits of a config: which rows are trained on, which are held out, and how they are encoded as prompts."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TypeVar

from cagsr.config import Config
from cagsr.config.schema import FILES, Part
from cagsr.data import prompts as data
from cagsr.data import readers as sources
from cagsr.data.data_report import DataReport
from cagsr.data.preferences import Pair, pair_rows, read_pairs
from cagsr.errors import InputError, closest
from cagsr.tasks import TASKS
from cagsr.tasks.task import split_of
from cagsr.types import Prompt

OfPart = TypeVar("OfPart", sources.Row, Prompt)

__all__ = [
    "DataSets",
    "build_pairs",
    "build_prompts",
    "build_references",
    "build_rows",
    "check_evaluation_data",
    "check_pairs",
    "chose_best",
    "evenly",
    "has_evaluation_data",
    "read_rows",
]


@dataclass(frozen=True)
class DataSets:
    """Rows in memory that take the place of those that the config names: for training, and for evaluation."""

    train: Sequence[sources.Row] | None = None
    evaluation: Sequence[sources.Row] | None = None


def has_evaluation_data(config: Config) -> bool:
    """Whether there are prompts that are not trained on."""
    return bool(config.data.task or config.data.holdout_column or _names_evaluation_data(config))


def check_evaluation_data(config: Config) -> None:
    """Raises InputError where `has_evaluation_data` is False."""
    if not has_evaluation_data(config):
        raise InputError(
            "data.source is trained on, and no other prompts are named to evaluate on. Name data.holdout_column, "
            "data.evaluation_source or data.evaluation_split; cagsr eval --split train takes data.source itself."
        )


def chose_best(config: Config, split: str) -> bool:
    """Whether training evaluates on this split too, to choose best/, so that its numbers are a little too good."""
    return split == "development" or (split == "heldout" and _names_evaluation_data(config))


def _names_evaluation_data(config: Config) -> bool:
    """Whether the user names evaluation rows: these are both development and heldout, as only the user could divide
    them.
    """
    return bool(config.data.evaluation_source or config.data.evaluation_split)


def build_rows(
    config: Config, split: str, datasets: DataSets = DataSets(), need_reference: bool = False
) -> list[sources.Row]:
    """Rows of the split ``train``, ``development`` or ``heldout``, before they are encoded.

    A task generates each. A source is read by its own splits where evaluation data is named; with
    ``data.holdout_column`` a row's part is decided by a stable hash of that column, so that rows which share a
    value (several references of one meaning, say) stay together.

    Raises InputError for another split than ``train`` of a source that nothing is kept out of.
    """
    given = config.data
    rows = _all_rows(config, split, datasets, need_reference)
    if split == "train":
        return rows
    if column := given.holdout_column:  # evaluation counts each distinct prompt once, by its first row
        rows = list({str(row.values.get(column)): row for row in reversed(rows)}.values())[::-1]
    return evenly(rows, given.evaluation_count)


def evenly(items: Sequence[OfPart], count: int) -> list[OfPart]:
    """The first ``count`` rows or prompts, in their order: of several data sets the first of each, as many of all."""
    left = Counter(item.part for item in items)
    taken = dict.fromkeys(left, 0)
    for _ in range(min(count, len(items))):
        part = min((part for part in left if left[part]), key=lambda part: taken[part])
        taken[part], left[part] = taken[part] + 1, left[part] - 1
    kept = []
    for item in items:
        if taken[item.part]:
            taken[item.part] -= 1
            kept.append(item)
    return kept


def _all_rows(
    config: Config, split: str, datasets: DataSets = DataSets(), need_reference: bool = False
) -> list[sources.Row]:
    """As `build_rows`, with every row: none is dropped for a shared value or for ``evaluation_count``."""
    given = config.data
    if split != "train":
        check_evaluation_data(config)
    if given.task:
        count = given.count if split == "train" else given.evaluation_count
        return sources.rows_of(TASKS[given.task].rows(split, count, seed=given.seed), given.task)
    if split != "train" and datasets.evaluation is not None:
        return list(datasets.evaluation)
    if datasets.train is not None:
        return _held_out(datasets.train, given.holdout_column, split, "train_dataset")
    named = split != "train" and _names_evaluation_data(config)
    parts = given.parts(evaluation=named)
    first = None
    if given.streaming:
        trained_on = (
            config.sft.steps * config.sft.batch_size if need_reference else config.train.prompts_needed
        )
        first = given.evaluation_count if named else trained_on
    read = [_part_rows(part, number, parts, first) for number, part in enumerate(parts)]
    return [
        row
        for part, rows in zip(parts, read, strict=True)
        for row in _held_out(rows, given.holdout_column, split, part.path)
    ]


def _part_rows(part: Part, number: int, parts: Sequence[Part], first: int | None) -> list[sources.Row]:
    """All rows of a data set, or the ``first`` of a stream, with its place among several and its weight."""
    rows = sources.read(part.path, part.split or "train", part.config_name, part.revision, first)
    if not rows and len(parts) > 1:
        raise InputError(f"data.source: {part.path} is empty; leave it out")
    notes: tuple[str, ...] = ()
    if part.weight:
        share = part.weight / sum(one.weight or 0 for one in parts)
        notes += (f"{part.path}: {share:.1%} of the prompts of a pass, by its weight",)
    if len(rows) == first and not part.path.lower().endswith(FILES):
        notes += (f"{part.path}: the first {first} rows of a stream, which are all that is read of it",)
    columns = part.prompt_column, part.reference_column
    return [
        replace(row, part=number, weight=part.weight, columns=columns, notes=row.notes + notes)
        for row in rows
    ]


def build_references(config: Config, split: str = "heldout") -> dict[str, list[str]]:
    """All references of each prompt, by its `scoreboard.prompt_key`: from all rows that have it, each text once.

    The texts of the reference column (``data.reference_column``, ``reference``, ``completion``, the reply of
    ``messages``) and of a column ``references`` that holds a list of texts. A prompt without any is not in it.
    """
    rows = _mapped(config, _all_rows(config, split))
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        several = row.values.get("references")
        texts = [row.values.get("reference"), *(several if isinstance(several, list) else ())]
        kept = dict.fromkeys(text for text in texts if isinstance(text, str) and text.strip())
        if kept and not row.problem:
            found.setdefault(str(row.values["prompt"]), {}).update(kept)
    return {prompt: list(texts) for prompt, texts in found.items()}


def _mapped(config: Config, rows: Sequence[sources.Row], need_reference: bool = False) -> list[sources.Row]:
    """The rows with their columns mapped, those of each data set by its own names and layout."""
    given = config.data
    how = {"salience_column": given.salience_column, "need_reference": need_reference}
    several = len({row.part for row in rows}) > 1
    mapped: list[sources.Row] = []
    for _, of_part in groupby(rows, key=lambda row: row.part):
        part = list(of_part)
        prompt, reference = part[0].columns or (given.prompt_column, given.reference_column)
        try:
            mapped += data.map_columns(part, prompt or given.prompt_column, reference, **how)
        except InputError as error:
            source = part[0].place.rpartition(" row ")[0]
            raise InputError(f"{source}: {error}" if several else str(error)) from None
    return mapped or data.map_columns([])


def _held_out(rows: Sequence[sources.Row], column: str | None, split: str, source: str) -> list[sources.Row]:
    """The rows of a data set that are of the split, by ``column``; all where none is named."""
    if not rows or column is None:
        return list(rows)
    names = {name for row in rows for name in row.values}
    if column not in names:
        raise InputError(f"data.holdout_column: {source} has no {column!r} column{closest(column, names)}")
    # The column of a row that cannot be read is unknown: the row goes to training, which reports it.
    return [
        row for row in rows if ("train" if row.problem else split_of(str(row.values.get(column)))) == split
    ]


def read_rows(
    config: Config, split: str, need_reference: bool = False, datasets: DataSets = DataSets()
) -> list[sources.Row]:
    """Rows of a split with their columns mapped: call it before a model is loaded, and hand them to `build_prompts`.

    Raises InputError for all that can be wrong with a data set and needs no tokenizer to be seen.
    """
    given = config.data
    rows = build_rows(config, split, datasets, need_reference)
    if not rows and given.holdout_column:
        raise InputError(
            f"data.holdout_column: no row of {given.name} falls to the {split} prompts by its "
            f"{given.holdout_column!r}. Name a column with more values, give more rows, or name data.evaluation_source."
        )
    if need_reference and any(row.weight for row in rows):
        raise InputError(
            "data.source: supervised training takes every row as often as any other; leave out the weights"
        )
    rows = _mapped(config, rows, need_reference)
    data.refuse_invalid(rows, given.skip_invalid)
    followup, names = config.metrics.followup_column, {name for row in rows for name in row.values}
    if split != "train" and followup is not None and followup not in names:
        raise InputError(f"metrics.followup_column: no {followup!r} column{closest(followup, names)}")
    return rows


def build_prompts(
    config: Config,
    policy: data.Reads,
    split: str,
    need_reference: bool = False,
    rows: Sequence[sources.Row] | None = None,
) -> tuple[list[Prompt], DataReport]:
    """Encoded prompts of a split, and a report on its rows.

    A causal model's prompt shares its context with the response; an encoder-decoder's has the encoder's to itself,
    and the response has the decoder's. ``need_reference``: the response is the reference. ``rows`` are what
    `read_rows` gave for the same split; None: they are read now.
    """
    given = config.data
    longest, key = config.sampling.max_new_tokens, "sampling.max_new_tokens"
    if need_reference:
        longest, key = config.sft.max_reference_tokens, "sft.max_reference_tokens"
    policy.check_length(longest, key)
    rows = read_rows(config, split, need_reference) if rows is None else rows
    prompts, report = data.encode(
        rows,
        **data.encoding(policy, given, longest),
        # References of one prompt are rows of their own: supervised training wants all, nothing else does.
        distinct=given.source is not None and not need_reference,
        new_tokens_key=key,
    )
    weighted = {number for number, part in enumerate(given.parts()) if part.weight}
    if split == "train" and (unused := weighted - {prompt.part for prompt in prompts}):
        path = given.parts()[min(unused)].path
        raise InputError(
            f"data.source: {path} has a weight, and none of its rows can be trained on: {report}"
        )
    return prompts, report


def check_pairs(config: Config) -> None:
    """Check ``compare.preferences``: raises InputError for all errors in it that can be found without a tokenizer."""
    given = config.compare.preferences
    if given is not None and given != "simulated":
        data.refuse_invalid(pair_rows(given), config.data.skip_invalid)


def build_pairs(config: Config, policy: data.Reads) -> tuple[list[Pair], DataReport]:
    """Preference pairs of people in ``compare.preferences``, and a report on its rows; none where it names no file."""
    given = config.compare.preferences
    if given is None or given == "simulated":
        return [], DataReport()
    return read_pairs(given, **data.encoding(policy, config.data, config.sampling.max_new_tokens))
