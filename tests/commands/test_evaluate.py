"""`cagsr eval`: which prompts it takes, and how it judges models of different tokenizers alike."""

import json

import pytest

from cagsr import build
from cagsr.config import Config
from cagsr.errors import InputError


def config(*overrides):
    return Config.load(None, ["model.name=none", *overrides])


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"city {n}", "part": n}) + "\n" for n in range(40)))
    return f"data.source={path}"


@pytest.mark.parametrize("split", ["heldout", "development"])
def test_training_prompts_are_never_taken_for_evaluation_prompts(source, split):
    with pytest.raises(InputError, match=r"Name data\.holdout_column, data\.evaluation_source or data\.eval"):
        build.build_rows(config(source), split)
    assert len(build.build_rows(config(source), "train")) == 40


def test_there_is_evaluation_data_where_some_is_named(source):
    assert not build.has_evaluation_data(config(source))
    assert build.has_evaluation_data(config(source, "data.holdout_column=part"))
    assert build.has_evaluation_data(config(source, "data.evaluation_source=other.jsonl"))
    assert build.has_evaluation_data(config("data.source=some/hub-name", "data.evaluation_split=test"))
    assert build.has_evaluation_data(config("data.task=slots"))


def test_prompts_that_chose_best_are_known(source):
    named, kept = (
        config(source, extra) for extra in ("data.evaluation_source=b.jsonl", "data.holdout_column=part")
    )
    assert [build.chose_best(named, split) for split in ("train", "development", "heldout")] == [
        False,
        True,
        True,
    ]
    assert [build.chose_best(kept, split) for split in ("train", "development", "heldout")] == [
        False,
        True,
        False,
    ]


def test_a_holdout_column_parts_the_rows(source):
    parts = [
        {row.values["part"] for row in build.build_rows(config(source, "data.holdout_column=part"), split)}
        for split in ("train", "development", "heldout")
    ]
    assert set.union(*parts) == set(range(40))
    assert sum(map(len, parts)) == 40
