"""Paths with `~` and `$VARIABLE`: in every key of the config, every argument, and what Python gives."""

import shutil
from pathlib import Path

import pytest

import cagsr as package
from cagsr.config import Config
from cagsr.errors import InputError
from cagsr.training.trainer import Trainer

RAW = [package.Term("coverage", standardise="none")]
PLACES = (
    "model.name",
    "data.source",
    "data.evaluation_source",
    "reward.preset",
    "run.directory",
    "sft.directory",
    "metrics.relevance_model",
    "metrics.perplexity_model",
    "metrics.judge.model",
    "metrics.ratings",
    "compare.directory",
    "compare.preferences",
)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch, models):
    directory = tmp_path / "home"
    directory.mkdir()
    (directory / "t5").symlink_to(models / "t5")
    monkeypatch.setenv("HOME", str(directory))
    monkeypatch.setenv("WORK", str(directory))
    monkeypatch.delenv("NOWHERE", raising=False)
    return directory


@pytest.mark.parametrize("key", PLACES)
def test_every_key_with_a_path_is_expanded_or_named(key, home):
    def load(value: str) -> Config:
        data = () if key.startswith("data.source") else ("data.source=rows.jsonl",)
        data += () if key == "model.name" else ("model.name=m",)
        return Config.load(None, [*data, f"{key}={value}"])

    for written in ("~/at/x.yaml", "$WORK/at/x.yaml", "${WORK}/at/x.yaml"):
        found = load(written)
        for part in key.split("."):
            found = getattr(found, part)
        assert found == f"{home}/at/x.yaml"
    with pytest.raises(InputError, match=rf"override {key}: .*the variable 'NOWHERE' is not set"):
        load("$NOWHERE/x.yaml")


def test_the_path_of_a_reward_model_is_expanded(home):
    terms = "reward.terms=[{signal: reward_model, options: {path: $WORK/rm}}]"
    config = Config.load(None, ["data.task=slots", terms])
    assert config.reward.terms is not None
    assert config.reward.terms[0].options == {"path": f"{home}/rm"}


def test_a_file_says_where_the_variable_stands(cagsr, tmp_path):
    Path("my.yaml").write_text("data:\n  task: slots\nrun:\n  directory: $NOWHERE/runs\n")
    outcome = cagsr("train", "--config", "my.yaml")
    assert (outcome.code, outcome.err) == (
        2,
        "error: my.yaml:4 run.directory: '$NOWHERE/runs': the variable 'NOWHERE' is not set; set it, or write the "
        "path out\n",
    )


def test_a_run_of_the_home_directory_lies_there(train, cagsr, home):
    shutil.copy2(__file__, home / "no.yaml")
    outcome = train("run.directory=~/runs/x", "model.name=$WORK/t5", "reward.preset=coverage")
    assert outcome.code == 0, outcome.err
    assert (home / "runs/x/model").is_dir()
    assert not Path("~").exists()
    assert Config.load("~/runs/x/config.yaml").run.directory == f"{home}/runs/x"
    assert cagsr("report", "--output=~/page.html", "$WORK/runs/x").code == 0
    assert (home / "page.html").is_file()
    evaluated = cagsr(
        "eval", "trained=~/runs/x/model", "data.task=slots", "data.evaluation_count=2", "--json"
    )
    assert evaluated.code == 0, evaluated.err
    assert cagsr("doctor", "~/t5").code == 0
    outcome = cagsr("report", "$NOWHERE/x")
    assert (outcome.code, "the variable 'NOWHERE' is not set" in outcome.err) == (2, True)


def test_what_python_gives_is_expanded_too(home, rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = Trainer("~/t5", package.TrainingConfig(output_dir="~/out"), [{"prompt": "a"}])
    assert (trainer.config.model.name, trainer.config.run.directory) == (f"{home}/t5", f"{home}/out")
    assert len(package.score("$WORK/t5", None, ["city lyon"], ["lyon"], reward=RAW).reward) == 1
    assert package.load_policy("~/t5").readable.kind == "encoder-decoder"
    with pytest.raises(InputError, match="the variable 'NOWHERE' is not set"):
        package.load_policy("$NOWHERE/t5")
