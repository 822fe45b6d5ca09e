"""No row lost in silence: what became of each row of a data set, counted a second time."""

import json
import re
from collections.abc import Mapping
from functools import cache
from random import Random
from typing import Any

from transformers import PreTrainedTokenizerBase

from cagsr.config import Config
from cagsr.data import splits
from cagsr.data.data_report import DataReport
from cagsr.data.preferences import read_pairs
from cagsr.data.prompts import encode, map_columns
from cagsr.data.readers import Row, read
from cagsr.errors import InputError
from cagsr.models.from_scratch import new_tokenizer
from cagsr.tasks import TASKS, tokenizer
from cagsr.types import Prompt
from data_mutations import WORDS, GivenData

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SPECIAL = re.compile("<pad>|</s>|<unk>")


@cache
def tokenizers() -> dict[str, PreTrainedTokenizerBase]:
    """Word-level ones, for which nearly every text is unknown, and byte-level ones, for which none is."""
    found: dict[str, PreTrainedTokenizerBase] = {
        "words": tokenizer(TASKS["slots"], "causal"),
        "words, ended": tokenizer(TASKS["slots"], "encoder-decoder"),
        "bytes": new_tokenizer(WORDS, "llama", 300),
        "bytes, ended": new_tokenizer(WORDS, "t5", 300),
        "bytes, chat": new_tokenizer(WORDS, "llama", 300),
    }
    found["bytes, chat"].chat_template = CHAT
    return found


def lost_rows(given: GivenData, random: Random) -> list[str]:
    """What is wrong with the account that reading a data set gives of its rows. Raises what the reading raises."""
    name = random.choice(tuple(tokenizers()))
    reader = tokenizers()[name]
    if given.pairs:
        pairs, report = read_pairs(given.name, reader, split=given.split, **given.encoding)
        return _miscounted([pair.prompt for pair in pairs], report, given)
    rows = read(given.name, given.split)
    wrong = _misread(rows, given.truth)
    if rows and random.random() < 0.2:
        wrong += _unparted(rows, given, random)
    mapped = map_columns(rows, need_reference=given.need_reference, **given.columns)
    if [row.place for row in mapped] != [row.place for row in rows]:
        wrong.append("a row was lost between reading and mapping")
    try:
        prompts, report = encode(mapped, reader, **given.encoding)
    except InputError as error:
        return wrong + _unnamed(str(error), mapped) + _refused_without_reason(mapped, given, name)
    wrong += _miscounted(prompts, report, given)
    if report.rows != len(rows):
        wrong.append(f"{len(rows)} rows were read and {report.rows} are reported")
    for prompt in prompts:
        wrong += _changed(prompt, rows[prompt.index], mapped[prompt.index], reader, given)
    used = {prompt.index for prompt in prompts}
    for index, row in enumerate(mapped):
        named = any(line.startswith(f"{row.place}: ") for line in report.invalid)
        if row.problem and (index in used or (not named and not given.encoding["distinct"])):
            wrong.append(
                f"{row.place} is bad ({row.problem}) and was {'used' if index in used else 'not named'}"
            )
    return wrong


def _misread(rows: list[Row], truth: list[Mapping[str, Any] | None] | None) -> list[str]:
    """Rows that are not those written."""
    wrong = ["two rows have one place"] if len({row.place for row in rows}) < len(rows) else []
    if truth is None:
        return wrong
    if len(rows) != len(truth):
        return [*wrong, f"{len(truth)} rows were written and {len(rows)} read"]
    for row, written in zip(rows, truth, strict=True):
        if written is None and not row.problem and not _may_be_read(row):
            wrong.append(f"{row.place} is bad and was read as {dict(row.values)}")
        if written is not None and any("spaces around" in note for note in row.notes):
            written = {name.strip(" "): value for name, value in written.items()}
        if written is not None and (row.problem or dict(row.values) != written):
            wrong.append(f"{row.place} was written as {written} and read as {row}"[:300])
    return wrong


def _unparted(rows: list[Row], given: GivenData, random: Random) -> list[str]:
    """Rows that are in no part once a column has parted them. Held-out parts count each of its values once."""
    column = random.choice([*rows[0].values, "prompt"])
    settings = [*given.settings(), ("holdout_column", column), ("evaluation_count", 10**9)]
    try:
        config = Config.load(
            None, ["model.name=m", *(f"data.{key}={json.dumps(value)}" for key, value in settings)]
        )
        train, *held = (splits.build_rows(config, split) for split in ("train", "development", "heldout"))
    except InputError:  # a name that no config can hold, or that no row has
        return []
    kept = {row.place for row in train}
    values = {str(row.values.get(column)) for part in held for row in part}
    return [
        f"{row.place} is in no part"
        for row in rows
        if row.place not in kept and (row.problem or str(row.values.get(column)) not in values)
    ]


def _may_be_read(row: Row) -> bool:
    """Of the lines that are bad rows, those that are JSON objects all the same: the row is refused later."""
    return not isinstance(row.values.get("prompt"), str)


def _miscounted(prompts: list[Prompt], report: DataReport, given: GivenData) -> list[str]:
    counted = report.used + len(report.invalid) + report.overlong + report.repeated
    wrong = [] if report.used == len(prompts) else [f"{len(prompts)} prompts, and {report.used} are reported"]
    wrong += (
        [] if counted == report.rows else [f"of {report.rows} rows {counted} are accounted for: {report}"]
    )
    indices = [prompt.index for prompt in prompts]
    wrong += [] if indices == sorted(set(indices)) else ["prompts are not in the order of their rows"]
    wrong += [] if prompts else ["done without a prompt"]
    wrong += [] if given.truth is None or report.rows == len(given.truth) else ["another number of rows"]
    if report.invalid and not given.encoding["skip_invalid"]:
        wrong.append("bad rows were dropped, and nobody asked for it")
    return wrong


def _changed(
    prompt: Prompt, row: Row, mapped: Row, reader: PreTrainedTokenizerBase, given: GivenData
) -> list[str]:
    """A prompt that is not what its row says, to the byte; or tokens that stand elsewhere than they say."""
    asked, text = mapped.values["prompt"], prompt.text
    wrong = []
    if isinstance(asked, str) and asked not in row.values.values():
        wrong.append(f"{row.place}: {dict(row.values)} became {asked!r}")
    if not isinstance(asked, str):
        said = "\n".join(turn["content"] for turn in asked if turn["role"] == "user")
        if not all(text[start:end] in said for start, end in prompt.content):
            wrong.append(f"{row.place}: the content of {text!r} is not the user's")
    elif text != asked:
        cut = {"truncate_left": asked.endswith, "truncate_right": asked.startswith}.get(
            given.encoding["overlong"]
        )
        wrong += [] if text and cut and cut(text) else [f"{row.place}: {asked!r} became {text!r}"]
    if len(prompt.offsets) != len(prompt.ids) or not all(0 <= s <= e <= len(text) for s, e in prompt.offsets):
        wrong.append(f"{row.place}: offsets outside the text")
    if isinstance(asked, str) and "▁" not in text and reader in _byte_level() and not SPECIAL.search(text):
        decoded = reader.decode(list(prompt.ids), skip_special_tokens=True)
        wrong += [] if decoded in (text, f" {text}") else [f"{row.place}: {text!r} is decoded as {decoded!r}"]
    return [problem[:300] for problem in wrong]


def _byte_level() -> list[PreTrainedTokenizerBase]:
    return [reader for name, reader in tokenizers().items() if name.startswith("bytes")]


def _unnamed(message: str, rows: list[Row]) -> list[str]:
    """Lines of a refusal that name no row; a refusal of the whole data set is one line."""
    places = tuple(str(InputError(f"{row.place}: ")) for row in rows)
    lines = message.split("\n")
    lines = lines[:-1] if len(lines) > 1 and lines[-1].startswith("... and ") else lines
    stray = [line for line in lines if not line.startswith(places)]
    return [f"names no row: {line[:100]!r}" for line in stray] if len(lines) > 1 else []


def _refused_without_reason(rows: list[Row], given: GivenData, name: str) -> list[str]:
    """Sound rows that were refused: short plain words, read by a tokenizer that knows every byte."""
    unlimited = given.encoding["max_prompt_tokens"] is None and "context" not in given.encoding
    sound = all(
        not row.problem
        and isinstance(row.values["prompt"], str)
        and set(row.values["prompt"].split()) & set(WORDS)
        and row.values["prompt"].isascii()
        for row in rows
    )
    return ["sound rows were refused"] if sound and unlimited and name.startswith("bytes") else []
