"""Data splits of a config: which rows are trained on, which are held out, and how they are encoded as prompts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cagsr.config import Config
from cagsr.data import prompts as data
from cagsr.data import readers as sources
from cagsr.data.data_report import DataReport
from cagsr.data.preferences import Pair, pair_rows, read_pairs
from cagsr.errors import InputError, closest
from cagsr.tasks import TASKS
from cagsr.tasks.task import split_of
from cagsr.types import Prompt

__all__ = [
    "DataSets",
    "build_pairs",
    "build_prompts",
    "build_references",
    "build_rows",
    "check_evaluation_data",
    "check_pairs",
    "chose_best",
    "has_evaluation_data",
    "read_rows",
]


@dataclass(frozen=True)
class DataSets:
    """Rows in memory that take the place of those that the config names: for training, and for evaluation."""

    train: Iterable[Mapping[str, Any]] | None = None
    evaluation: Iterable[Mapping[str, Any]] | None = None


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


def build_rows(config: Config, split: str, datasets: DataSets = DataSets()) -> list[sources.Row]:
    """Rows of the split ``train``, ``development`` or ``heldout``, before they are encoded.

    A task generates each. A source is read by its own splits where evaluation data is named; with
    ``data.holdout_column`` a row's part is decided by a stable hash of that column, so that rows which share a
    value (several references of one meaning, say) stay together.

    Raises InputError for another split than ``train`` of a source that nothing is kept out of.
    """
    given = config.data
    rows = _all_rows(config, split, datasets)
    if split == "train":
        return rows
    if column := given.holdout_column:  # evaluation counts each distinct prompt once, by its first row
        rows = list({str(row.values.get(column)): row for row in reversed(rows)}.values())[::-1]
    return rows[: given.evaluation_count]


def _all_rows(config: Config, split: str, datasets: DataSets = DataSets()) -> list[sources.Row]:
    """As `build_rows`, with every row: none is dropped for a shared value or for ``evaluation_count``."""
    given = config.data
    if split != "train":
        check_evaluation_data(config)
    if given.task:
        count = given.count if split == "train" else given.evaluation_count
        return sources.rows_of(TASKS[given.task].rows(split, count, seed=given.seed), given.task)
    if split != "train" and datasets.evaluation is not None:
        return sources.rows_of(datasets.evaluation, "eval_dataset")
    if datasets.train is not None:
        rows = sources.rows_of(datasets.train, "train_dataset")
    else:
        source, part = str(given.source), given.split
        if split != "train" and _names_evaluation_data(config):
            source, part = given.evaluation_source or source, given.evaluation_split or given.split
        rows = sources.read(source, part, given.config_name, given.revision)
    return _held_out(rows, given.holdout_column, split) if given.holdout_column else rows


def build_references(config: Config, split: str = "heldout") -> dict[str, list[str]]:
    """All references of each prompt, by its `scoreboard.prompt_key`: from all rows that have it, each text once.

    The texts of the reference column (``data.reference_column``, ``reference``, ``completion``, the reply of
    ``messages``) and of a column ``references`` that holds a list of texts. A prompt without any is not in it.
    """
    given = config.data
    rows = data.map_columns(
        _all_rows(config, split), given.prompt_column, given.reference_column, given.salience_column
    )
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        several = row.values.get("references")
        texts = [row.values.get("reference"), *(several if isinstance(several, list) else ())]
        kept = dict.fromkeys(text for text in texts if isinstance(text, str) and text.strip())
        if kept and not row.problem:
            found.setdefault(str(row.values["prompt"]), {}).update(kept)
    return {prompt: list(texts) for prompt, texts in found.items()}


def _held_out(rows: list[sources.Row], column: str, split: str) -> list[sources.Row]:
    if not rows:
        return []
    names = {name for row in rows for name in row.values}
    if column not in names:
        raise InputError(f"data.holdout_column: no {column!r} column{closest(column, names)}")
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
    rows = build_rows(config, split, datasets)
    if not rows and given.holdout_column:
        raise InputError(
            f"data.holdout_column: no row of {given.source} falls to the {split} prompts by its "
            f"{given.holdout_column!r}. Name a column with more values, give more rows, or name data.evaluation_source."
        )
    rows = data.map_columns(
        rows,
        given.prompt_column,
        given.reference_column,
        given.salience_column,
        need_reference=need_reference,
    )
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
    return data.encode(
        read_rows(config, split, need_reference) if rows is None else rows,
        **data.encoding(policy, given, longest),
        # References of one prompt are rows of their own: supervised training wants all, nothing else does.
        distinct=given.source is not None and not need_reference,
        new_tokens_key=key,
    )


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
