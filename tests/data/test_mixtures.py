"""Several data sets: files in a list or by a pattern, shares by weight, streams, and columns that hold no text."""

import json
from collections import Counter
from types import SimpleNamespace

import datasets
import pandas
import pyarrow
import pytest
from test_prompts import byte_tokenizer

from cagsr.config import Config, check_paths
from cagsr.config.schema import Train
from cagsr.data.file_formats import binary_columns
from cagsr.data.readers import read, rows_of_dataset
from cagsr.data.splits import build_prompts, build_rows, evenly, read_rows
from cagsr.errors import InputError
from cagsr.runs.identity import of_data, of_start
from cagsr.tasks.task import split_of
from cagsr.training.prompt_order import prompts_for
from cagsr.training.trainer_arguments import checked_rows

ONE_PROCESS = SimpleNamespace(num_processes=1, device=SimpleNamespace(type="cpu"), is_fsdp2=False)
READER = SimpleNamespace(
    tokenizer=byte_tokenizer(),
    skipped=None,
    context=None,
    response_positions=lambda new_tokens: new_tokens,
    check_length=lambda tokens, key: None,
)


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with 5 rows in a.jsonl and 3, of other columns, in b.jsonl."""
    monkeypatch.chdir(tmp_path)
    lines(tmp_path / "a.jsonl", *({"prompt": f"a {n}", "key": str(n)} for n in range(5)))
    lines(tmp_path / "b.jsonl", *({"question": f"b {n}", "answer": "yes", "key": str(n)} for n in range(3)))
    return tmp_path


def config(source, *overrides):
    return Config.load(None, [f"data.source={source}", "model.name=m", *overrides])


B = "{path: b.jsonl, prompt_column: question, reference_column: answer"


def test_several_data_sets_are_one_each_with_its_own_columns(place):
    rows = read_rows(config(f"[a.jsonl, {B}}}]"), "train")
    assert [row.values["prompt"] for row in rows] == [f"a {n}" for n in range(5)] + [
        f"b {n}" for n in range(3)
    ]
    assert [row.values.get("reference") for row in rows[4:6]] == [None, "yes"]
    assert rows[5].place == "b.jsonl row 1"


def test_a_pattern_names_files_in_the_order_of_their_names(place):
    lines(place / "part-2.jsonl", {"prompt": "second"})
    lines(place / "part-1.jsonl", {"prompt": "first"})
    chosen = config("part-*.jsonl")
    check_paths(chosen)
    assert [(row.values["prompt"], row.place) for row in read_rows(chosen, "train")] == [
        ("first", "part-1.jsonl row 1"),
        ("second", "part-2.jsonl row 1"),
    ]
    with pytest.raises(InputError, match=r"data\.source: no such file 'none-\*\.jsonl'"):
        check_paths(config("[a.jsonl, none-*.jsonl]"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("[]", 'data.source: got [], expected text (not empty) or a list, each text (not empty) or a mapping'),
        ("[{path: a.jsonl, weigth: 2}]", "data.source: unknown key 'weigth'; did you mean 'weight'?"),
        ("[a.jsonl, {weight: 2}]", "data.source: missing key data.source.1.path: A file"),
        ("[{path: a.jsonl, weight: 0}]", "data.source: data.source.0.weight: got 0, expected a number above 0"),
        ("[a.jsonl, {path: b.jsonl, weight: 2}]", "data.source: data.source: give a weight to each"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_list_is_said_once_with_its_place(place, source, message):
    with pytest.raises(InputError) as caught:
        config(source)
    assert str(caught.value).startswith("override " + message)
    assert "\n" not in str(caught.value)


def test_weights_and_streams_are_refused_where_they_mean_nothing(place):
    with pytest.raises(InputError, match=r"weights say how often a prompt is trained on; leave them out"):
        config("a.jsonl", "data.evaluation_source=[{path: b.jsonl, weight: 2}]")
    with pytest.raises(InputError, match=r"data\.streaming is for hub data sets"):
        config("a.jsonl", "data.streaming=true")
    with pytest.raises(InputError, match=r"supervised training takes every row as often as any other"):
        read_rows(config("[{path: b.jsonl, weight: 2}]"), "train", need_reference=True)


def test_an_empty_file_and_one_without_the_column_are_named_among_several(place):
    lines(place / "empty.jsonl")
    with pytest.raises(InputError, match=r"data\.source: empty\.jsonl is empty; leave it out"):
        read_rows(config("[a.jsonl, empty.jsonl]"), "train")
    with pytest.raises(
        InputError, match=r"^b\.jsonl: no 'prompt' column; found 'question', 'answer', 'key'\."
    ):
        read_rows(config("[a.jsonl, b.jsonl]"), "train")
    lines(place / "c.jsonl", {"prompt": "c"})
    with pytest.raises(InputError, match=r"data\.holdout_column: c\.jsonl has no 'key' column"):
        read_rows(config("[a.jsonl, c.jsonl]", "data.holdout_column=key"), "train")


def test_evaluation_reads_its_own_split_of_every_data_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        parts = {
            part: datasets.Dataset.from_list([{"prompt": f"{name} {part}"}])
            for part in ("train", "x", "test")
        }
        datasets.DatasetDict(parts).save_to_disk(name)
    chosen = config("[a, {path: b, split: x}]", "data.evaluation_split=test")
    assert [row.values["prompt"] for row in build_rows(chosen, "train")] == ["a train", "b x"]
    assert [row.values["prompt"] for row in build_rows(chosen, "heldout")] == ["a test", "b test"]


def test_a_pass_has_of_each_data_set_the_share_of_its_weight(place):
    """8 prompts at 3 to 1 are 6 of the five of a and 2 of the three of b; none comes twice before all came once."""
    chosen = config(f"[{{path: a.jsonl, weight: 3}}, {B}, weight: 1}}]")
    prompts, report = build_prompts(chosen, READER, "train")
    assert "a.jsonl: 75.0% of the prompts of a pass, by its weight" in report.notes
    seen = [prompt for number in range(24) for prompt in prompts_for(prompts, number, 3, seed=5)]
    for start in range(0, 72, 8):
        assert Counter(prompt.part for prompt in seen[start : start + 8]) == {0: 6, 1: 2}
    for part, count in ((0, 54), (1, 18)):
        times = Counter(prompt.index for prompt in seen if prompt.part == part)
        assert times.total() == count
        assert max(times.values()) - min(times.values()) <= 1
    # A function of the seed and the number alone, so that a run goes on from any step.
    assert prompts_for(prompts, 17, 3, seed=5) == seen[51:54]
    assert [p.index for p in seen] != [p.index for n in range(24) for p in prompts_for(prompts, n, 3, seed=6)]


def test_a_weight_is_part_of_what_a_run_stands_on_and_a_path_is_not(place):
    def found(source):
        return of_start(config(source, "model.name=m"), ("data",), ONE_PROCESS, loaded={})["data.source"]

    (place / "a.jsonl").rename(place / "moved.jsonl")
    moved = found(f"[{{path: moved.jsonl, weight: 3}}, {B}, weight: 1}}]")
    (place / "moved.jsonl").rename(place / "a.jsonl")
    assert found(f"[{{path: a.jsonl, weight: 3}}, {B}, weight: 1}}]") == moved
    assert found(f"[{{path: a.jsonl, weight: 2}}, {B}, weight: 1}}]") != moved


def test_a_weighted_data_set_of_which_nothing_is_left_is_named(place):
    kept_out = next(str(n) for n in range(99) if split_of(str(n)) == "heldout")
    lines(place / "c.jsonl", {"prompt": "c", "key": kept_out})
    chosen = config("[{path: a.jsonl, weight: 1}, {path: c.jsonl, weight: 3}]", "data.holdout_column=key")
    message = r"data\.source: c\.jsonl has a weight, and none of its rows can be trained on"
    with pytest.raises(InputError, match=message):
        build_prompts(chosen, READER, "train")


def test_a_prompt_of_two_weighted_data_sets_counts_in_both(place):
    """Among all it would be the first one's alone, and the second's weight would be on what is left of it."""
    lines(place / "c.jsonl", {"prompt": "a 1"}, {"prompt": "a 1"}, {"prompt": "c"})
    weighted = config("[{path: a.jsonl, weight: 1}, {path: c.jsonl, weight: 9}]")
    prompts, report = build_prompts(weighted, READER, "train")
    assert Counter(prompt.part for prompt in prompts) == {0: 5, 1: 2}
    assert report.repeated == 1
    assert Counter(p.part for p in build_prompts(config("[a.jsonl, c.jsonl]"), READER, "train")[0]) == {
        0: 5,
        1: 1,
    }


def test_which_data_set_a_weighted_prompt_is_of_is_part_of_what_a_run_stands_on(place):
    """The last row of one moved to the front of the other: the same prompts, and they come in another order."""

    def of(first, second):
        lines(place / "c.jsonl", *({"prompt": text} for text in first))
        lines(place / "d.jsonl", *({"prompt": text} for text in second))
        source = "[{path: c.jsonl, weight: 1}, {path: d.jsonl, weight: 1}]"
        return of_data(build_prompts(config(source), READER, "train")[0])

    assert of("xy", "z") == of("xy", "z") != of("x", "yz")


def test_evaluation_is_read_by_the_columns_of_its_own_data_sets(place):
    lines(place / "c.jsonl", {"prompt": "c"}, {"prompt": "c 2"})
    one = "[{path: b.jsonl, prompt_column: question}]"
    assert [row.values["prompt"] for row in read_rows(config(one), "train")] == ["b 0", "b 1", "b 2"]

    def evaluated(source, evaluation):
        found = read_rows(config(source, f"data.evaluation_source={evaluation}"), "heldout")
        return [row.values["prompt"] for row in found]

    assert evaluated(one, "c.jsonl") == ["c", "c 2"]
    assert evaluated("a.jsonl", f"[c.jsonl, {B}}}]") == ["c", "c 2", "b 0", "b 1", "b 2"]
    assert evaluated(f"[{B}}}, a.jsonl]", f"[c.jsonl, a.jsonl, {B}}}]")[-1] == "b 2"


def test_evaluation_takes_as_many_rows_of_each_data_set(place):
    chosen = config(f"[a.jsonl, {B}}}]", f"data.evaluation_source=[a.jsonl, {B}}}]")
    for count, expected in ((2, {0: 1, 1: 1}), (5, {0: 3, 1: 2}), (7, {0: 4, 1: 3}), (99, {0: 5, 1: 3})):
        found = read_rows(chosen.replaced({"data.evaluation_count": count}), "heldout")
        assert Counter(row.part for row in found) == expected
    assert [row.values["prompt"] for row in evenly(build_rows(config("a.jsonl"), "train"), 2)] == [
        "a 0",
        "a 1",
    ]


def test_a_stream_is_read_no_further_than_the_steps_take_prompts(monkeypatch):
    read_rows_of = []

    def rows():
        for n in range(10**9):
            read_rows_of.append(n)
            yield {"prompt": f"number {n}"}

    def load_dataset(name, config_name, split, revision, streaming):
        assert streaming
        return datasets.IterableDataset.from_generator(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    chosen = config("some/stream", "data.streaming=true", "train.steps=3", "train.prompts_per_step=7")
    found = read_rows(chosen, "train")
    assert [row.values["prompt"] for row in found] == [f"number {n}" for n in range(21)]
    assert len(read_rows_of) <= 22
    assert found[0].notes == ("some/stream: the first 21 rows of a stream, which are all that is read of it",)
    assert Train(steps=3, prompts_per_step=7, replacements=2).prompts_needed == 63


def test_images_and_audio_are_left_alone_by_name_wherever_rows_come_from(tmp_path, monkeypatch):
    """The bytes are those of no image: that nothing was decoded shows in that nothing failed."""
    features = datasets.Features(
        {
            "prompt": datasets.Value("string"),
            "image": datasets.Image(),
            "voices": datasets.List(datasets.Audio()),
            "n": datasets.Value("int64"),
        }
    )
    file = {"bytes": b"none", "path": None}
    row = {"prompt": "one", "image": file, "voices": [file], "n": 3}
    # Not from_list, which would encode the columns, and that needs packages that reading them does not.
    found = datasets.Dataset(datasets.table.InMemoryTable.from_pylist([row], schema=features.arrow_schema))
    found.save_to_disk(str(tmp_path / "saved"))
    found.to_parquet(str(tmp_path / "d.parquet"))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: found.to_iterable_dataset())
    for source in (str(tmp_path / "saved"), str(tmp_path / "d.parquet"), "some/hub"):
        (read_row,) = read(source)
        assert dict(read_row.values) == {"prompt": "one", "n": 3}, source
        assert read_row.notes == ("columns left alone, as they hold no text: image, voices",)


def test_values_that_are_no_json_are_left_out_of_a_stream_without_features():
    stream = datasets.IterableDataset.from_generator(
        lambda: iter([{"prompt": "one", "image": object(), "n": [3]}])
    )
    assert stream.features is None
    (row,) = rows_of_dataset(stream, "train_dataset")
    assert dict(row.values) == {"prompt": "one", "n": [3]}
    assert row.notes == ("columns left alone, as they hold no text: image",)


def test_a_data_frame_with_a_column_features_is_refused_like_any_other():
    frame = pandas.DataFrame({"prompt": ["one"], "features": ["two"]})
    with pytest.raises(InputError, match=r"Dataset\.from_pandas for a DataFrame"):
        checked_rows("train_dataset", frame, 1)


@pytest.mark.parametrize(
    "kind",
    [
        pyarrow.binary(),
        pyarrow.binary(16),
        pyarrow.binary_view(),
        pyarrow.large_binary(),
        pyarrow.dictionary(pyarrow.int32(), pyarrow.binary()),
        pyarrow.list_(pyarrow.binary(4)),
    ],
    ids=str,
)
def test_every_kind_of_bytes_is_binary(kind):
    words = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    assert binary_columns(pyarrow.schema({"text": pyarrow.string(), "words": words, "found": kind})) == [
        "found"
    ]
