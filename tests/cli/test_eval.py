"""`cagsr eval` and `cagsr sft`: models side by side, in the shape of the demo's summary."""

import json
from pathlib import Path

import pytest

from cagsr.errors import EndpointError, StorageError

METRICS = {
    "slot_error_rate",
    "coverage",
    "perfect",
    "clean",
    "hallucination",
    "wrong_values",
    "repetition",
    "length",
}
LABEL_FREE = {"finished", "repeated_trigrams", "reward", "words", "distinct_2", "foreign_names"} | {
    f"signal/{name}"
    for name in ("knockout", "surprise", "retold", "reference_logprob", "repetition", "unfinished")
}
ENDS = {"mean", "low", "high"}
SMALL = ["data.evaluation_count=2", "sampling.max_new_tokens=9"]
PLAIN = "reward.preset=coverage"


def test_json_has_the_shape_of_the_demos_summary(cagsr, models):
    outcome = cagsr(
        "eval", f"base={models / 't5'}", f"other={models / 'llama'}", "data.task=slots", *SMALL, "--json"
    )
    assert outcome.code == 0
    said = " ".join(outcome.err.split())
    first, then = (f"{name}, heldout prompts: 2 of 2 rows used." for name in ("base", "other"))
    assert said.startswith(f"{first} reward: robust is knockout for this base: ")
    signals = "knockout, surprise, retold, reference_logprob, repetition, unfinished"
    assert f" the reward that is measured is the preset knockout, as base reads it: {signals} {then}" in said
    assert "warning: intervals over 2 prompts are too narrow" in outcome.err
    summary = json.loads(outcome.out)
    assert {"task", "seed", "seconds", "systems", "differences"} <= set(summary)
    assert (summary["task"], summary["seed"]) == ("slots", 0)
    assert list(summary["systems"]) == ["base", "other"]
    assert list(summary["differences"]) == ["other-base"]
    for metrics in (*summary["systems"].values(), *summary["differences"].values()):
        assert set(metrics) == METRICS | LABEL_FREE | {"exact_match"}
        for interval in metrics.values():
            assert set(interval) == ENDS
            assert interval["low"] <= interval["mean"] + 1e-9
            assert interval["mean"] <= interval["high"] + 1e-9
    base, other = (summary["systems"][name]["length"]["mean"] for name in ("base", "other"))
    assert summary["differences"]["other-base"]["length"]["mean"] == pytest.approx(other - base)


def test_one_model_against_itself_differs_in_nothing(cagsr, models):
    name = models / "t5"
    outcome = cagsr(
        "eval", f"a={name}", f"b={name}", "data.task=slots", *SMALL, PLAIN, "--json", "--split", "development"
    )
    difference = json.loads(outcome.out)["differences"]["b-a"]
    assert all(set(interval.values()) == {0.0} for interval in difference.values())


def test_a_model_is_called_by_its_directory(cagsr, models):
    named = f"flan-t5-1.1={models / 't5'}"
    assert (
        "flan-t5-1.1 against llama, paired:"
        in cagsr("eval", models / "llama", named, "data.task=slots", *SMALL, PLAIN).out
    )
    outcome = cagsr("eval", models / "t5", models / "llama", "data.task=slots", *SMALL, PLAIN)
    assert outcome.code == 0, outcome.err
    assert "llama against t5, paired:" in outcome.out
    assert "no difference seen" in outcome.out or "better" in outcome.out or "worse" in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 80


def test_prompts_of_ones_own_need_no_other_model_name(cagsr, models, rows):
    source = rows("p.jsonl", {"prompt": "city lyon"}, {"prompt": "day monday"}, {"prompt": "drink tea"})
    arguments = ["eval", f"base={models / 't5'}", f"data.source={source}", *SMALL, "--sampled"]
    refused = cagsr(*arguments)
    assert refused.code == 2
    assert "data.holdout_column, data.evaluation_source or data.evaluation_split" in refused.err
    assert "prompts trained on, 8 samples a prompt" in cagsr(*arguments, "--split", "train").out
    outcome = cagsr(*arguments, "--split", "train", "--json")
    summary = json.loads(outcome.out)
    assert set(summary["systems"]["base"]) == LABEL_FREE | {"length"}
    assert (summary["task"], summary["decoding"]) == ("p.jsonl", "8 samples a prompt")


@pytest.fixture
def tuned(train, models, monkeypatch) -> str:
    """A model that was trained by its base's own heads."""
    with monkeypatch.context() as patched:
        patched.setattr("cagsr.rewards.heads_found.FOLLOWS", -1.0)
        patched.setattr("cagsr.rewards.heads_found.ENOUGH", 1)
        patched.setattr("cagsr.rewards.heads_found.UNDECIDED", 0.0)
        assert train("reward.preset=robust").code == 0
    return "tuned=run/model"


def test_a_run_is_measured_by_its_own_heads_where_its_base_observes(cagsr, models, tuned, monkeypatch):
    monkeypatch.setattr("cagsr.evaluation.chosen_reward.find_heads", None)
    outcome = cagsr("eval", f"base={models / 't5'}", tuned, "data.task=slots", *SMALL, "--json")
    assert outcome.code == 0, outcome.err
    said = " ".join(outcome.err.split())
    assert "reward: robust is attention-values for this base: its attention agrees" in said
    assert "(as in run/heads.json)" in said
    assert "the reward that is measured is the preset attention-values, as base reads it: attended, " in said
    assert "signal/attended" in json.loads(outcome.out)["systems"]["tuned"]


@pytest.mark.parametrize(
    ("base", "given"), [("llama", []), ("t5", ["reward.layers=last"]), ("t5", ["reward.preset=coverage"])]
)
def test_of_another_base_or_other_layers_nothing_of_a_run_is_read(cagsr, models, tuned, base, given):
    outcome = cagsr("eval", f"base={models / base}", tuned, "data.task=slots", *SMALL, *given)
    assert outcome.code == 0, outcome.err
    assert "(as in run/heads.json)" not in " ".join((outcome.out + outcome.err).split())


def test_a_run_whose_records_are_damaged_is_measured_all_the_same(cagsr, models, tuned):
    Path("run/run.json").write_text("{")
    outcome = cagsr("eval", f"base={models / 't5'}", tuned, "data.task=slots", *SMALL)
    assert outcome.code == 0, outcome.err


def test_two_models_of_one_name_are_refused(cagsr, models):
    outcome = cagsr("eval", models / "t5", f"t5={models / 'llama'}", "data.task=slots")
    assert (outcome.code, outcome.err) == (2, "error: two models are called 't5'; name them: NAME=PATH\n")


def test_sft_from_scratch_makes_a_base_that_train_and_eval_take(cagsr, rows):
    pairs = [
        {"prompt": f"city {city}", "reference": f"it comes to {city}"} for city in ("lyon", "porto", "bern")
    ]
    source = rows("pairs.jsonl", *pairs)
    scratch = "sft.scratch={architecture: llama, layers: 1, hidden: 16, heads: 2, vocabulary: 300}"
    outcome = cagsr(
        "sft", f"data.source={source}", scratch, "sft.steps=2", "sft.batch_size=3", "sft.directory=base"
    )
    assert (outcome.code, outcome.err) == (0, ""), outcome.err
    assert "references: 3 of 3 rows used." in outcome.out
    assert {path.name for path in Path("base").iterdir()} >= {
        "model",
        "run.json",
        "config.yaml",
        "summary.json",
    }
    again = cagsr("sft", f"data.source={source}", scratch, "sft.steps=2", "sft.directory=base")
    assert again.code == 2
    assert "base belongs to run" in again.err
    assert cagsr("eval", "base/model", f"data.source={source}", *SMALL, PLAIN, "--split", "train").code == 0


@pytest.mark.parametrize("fails_after", [0, 1, 5])
def test_a_judge_that_fails_is_an_error_after_everything_else_is_printed(
    cagsr, models, monkeypatch, fails_after
):
    class Failing:
        asked = 0

        def __init__(self, url, model, timeout):
            pass

        def __call__(self, messages, max_tokens):
            if self.asked == fails_after:
                raise EndpointError("metrics.judge: http://x/v1 does not answer")
            self.asked += 1
            return "A" if "response A" in messages[0]["content"] else "4"

        def describe(self):
            return {"name": "failing"}

    monkeypatch.setattr("cagsr.evaluation.metrics_from_config.Endpoint", Failing)
    judge = "metrics.judge={endpoint: http://x/v1, model: wise, pairwise: true}"
    named = (f"base={models / 't5'}", f"other={models / 'llama'}")
    outcome = cagsr("eval", *named, "data.task=slots", *SMALL, judge, "--json")
    assert outcome.code == 69
    reason = "metrics.judge: http://x/v1 does not answer"
    assert outcome.err.endswith(f"error: all but the judge's part was measured: {reason}\n")
    summary = json.loads(outcome.out)
    assert summary["measured_by"]["not_measured"]["judge"] == reason
    # What it said of both, before it failed over which is better, holds; of one alone nothing could be compared.
    measured = METRICS | LABEL_FREE | {"exact_match"} | ({"judge"} if fails_after == 5 else set())
    assert all(set(metrics) == measured for metrics in summary["systems"].values())
    assert summary.get("preferences", {}) == {}


def test_what_was_measured_is_kept_for_the_report_and_nothing_is_overwritten(cagsr, models, tmp_path):
    named = ("eval", f"base={models / 't5'}", f"other={models / 'llama'}", "data.task=slots", *SMALL, PLAIN)
    outcome = cagsr(*named, "--output", "kept", "--json")
    kept = json.loads((tmp_path / "kept/summary.json").read_text())
    assert kept == json.loads(outcome.out)
    assert cagsr("report", "kept").code == 0
    page = (tmp_path / "kept/report.html").read_text()
    assert "Difference to base, paired" in page
    assert "Not everything could be read" not in page
    again = cagsr(*named, "--output", "kept")
    assert (again.code, "kept" in again.err) == (2, True)


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_measured(cagsr, monkeypatch, tmp_path):
    monkeypatch.setattr("cagsr.evaluation.evaluate.evaluate", None)
    (tmp_path / "file").write_text("")
    for output in ("file", "file/kept"):
        outcome = cagsr("eval", "base=none", "data.task=slots", "--output", output)
        assert outcome.code == 2
        assert outcome.err.startswith("error: --output: ")
        assert outcome.err.endswith("file is a file; choose another directory\n")


def test_what_was_measured_is_printed_where_it_cannot_be_kept(cagsr, models, monkeypatch):
    def create(*_):
        raise StorageError("kept cannot be written: no space")

    monkeypatch.setattr("cagsr.runs.directory.RunDirectory.create", create)
    named = ("eval", f"base={models / 'llama'}", "data.task=slots", *SMALL, PLAIN, "--output", "kept")
    table, as_json = cagsr(*named), cagsr(*named, "--json")
    assert table.code == as_json.code == 4
    assert as_json.err.endswith("error: kept cannot be written: no space\n")
    assert "unfinished" in table.out
    assert list(json.loads(as_json.out)["systems"]) == ["base"]


def test_ifeval_is_measured_of_rows_that_have_its_instructions(cagsr, models, tmp_path):
    pytest.importorskip("if_verifiable")
    rows = [
        {"prompt": f"describe colour : red ; hour : {hour}"}
        | {"instruction_id_list": ["punctuation:no_comma", "detectable_format:title"], "kwargs": [{}, {}]}
        for hour in ("one", "two", "three")
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = (
        "eval",
        f"base={models / 'llama'}",
        "data.source=rows.jsonl",
        "metrics.ifeval=true",
        *SMALL,
        PLAIN,
    )
    outcome = cagsr(*named, "--split", "train", "--json")
    found = json.loads(outcome.out)
    assert found["measured_by"]["ifeval"]["package"] == "if-verifiable"
    measured = {
        name: found["systems"]["base"][name]["mean"] for name in ("ifeval_strict", "ifeval_instructions")
    }
    # The words of the task have no comma, and nothing to write a title with.
    assert measured == {"ifeval_strict": 0.0, "ifeval_instructions": 0.5}
