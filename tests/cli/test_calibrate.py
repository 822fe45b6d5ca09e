"""`cagsr calibrate`: a preset out of a model's own responses, that `cagsr train` takes."""

import json
from pathlib import Path

import pytest

from cagsr.rewards.presets import load_preset

SMALL = ["data.count=7", "sampling.candidates=3", "sampling.max_new_tokens=12", "train.micro_batch=12"]
TERMS = (
    "reward.terms=[{signal: lexical_overlap}, {signal: length}, {signal: knockout}, "
    "{signal: repetition, weight: 5.0, standardise: none}, {signal: unfinished, weight: 0.5, standardise: none}]"
)
PROMPT = "describe city : lyon ; drink : tea"


@pytest.fixture
def calibrate(cagsr, models):
    def run(*arguments, model="t5", terms=TERMS):
        name = f"model.name={models / model}"
        return cagsr("calibrate", "data.task=slots", name, *SMALL, terms, "--prompts", "5", *arguments)

    return run


@pytest.mark.parametrize("model", ["t5", "llama"])
def test_the_preset_it_writes_is_one_that_train_takes(calibrate, train, model):
    outcome = calibrate("--output", "mine.yaml", "--json", model=model)
    assert outcome.code == 0, outcome.err
    summary = json.loads(outcome.out)
    terms = load_preset("mine.yaml")
    assert [term.signal for term in terms] == [term["signal"] for term in summary["terms"]]
    assert all(term.weight > 0 for term in terms)
    found = summary["contrasts"]
    assert set(found["by_kind"]) <= {"dropped", "duplicated", "inserted", "replaced", "swapped"}
    assert 0 <= found["held_out"]["low"] <= found["held_out"]["mean"] <= found["held_out"]["high"] <= 1
    about = " ".join(Path("mine.yaml").read_text().split())
    assert "on slots" in about
    assert "5 training prompts, seed 0" in about
    assert f"{found['held_out']['mean']:.3f}" in about
    assert train("reward.preset=mine.yaml", model=model).code == 0


def test_the_preset_says_what_its_weights_were_fitted_to(calibrate):
    assert calibrate("--output", "mine.yaml", "reward.salience.kind=pieces").code == 0
    assert "salience: pieces" in Path("mine.yaml").read_text()
    assert calibrate("--output", "plain.yaml").code == 0
    assert "salience" not in Path("plain.yaml").read_text()


def test_the_same_seed_finds_the_same_weights(calibrate):
    calibrate("--output", "one.yaml")
    calibrate("--output", "two.yaml")
    calibrate("--output", "three.yaml", "train.seed=1")
    one, two, three = (Path(f"{name}.yaml").read_text() for name in ("one", "two", "three"))
    assert one == two
    assert one != three


def test_what_is_said_names_every_kind_and_every_weight(calibrate):
    outcome = calibrate()
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[0] == "train prompts: 7 of 7 rows used."
    assert lines[1].startswith("the prompt of row 1 as the model reads it: ")
    (contrasts,) = (line for line in lines if line.startswith("contrasts: "))
    assert "held-out agreement" in contrasts
    assert any(line.split()[:1] == ["dropped"] for line in lines)
    assert sum("in spreads of the group" in line for line in lines) >= 1
    assert "reward.preset=preset.yaml" in outcome.out


def test_labels_come_on_top_and_their_held_out_agreement_is_told(calibrate, rows):
    made = [
        {
            "prompt": PROMPT.replace("lyon", city),
            "chosen": f"comes to {city} and serves tea afterwards",
            "rejected": f"tea {city}",
        }
        for city in ("lyon", "bern", "cork", "graz", "riga", "turin")
    ]
    pairs = rows("pairs.jsonl", *made)
    free, *labelled = [
        json.loads(calibrate(*options, "--json", terms="reward.terms=[{signal: length}, {signal: mass}]").out)
        for options in (
            ["--output", "free.yaml"],
            ["--output", "two.yaml", "--pairs", pairs, "--labels", "2"],
            ["--pairs", pairs],
        )
    ]
    assert "labels" not in free
    assert [summary["labels"]["pairs"] for summary in labelled] == [2, 6]
    # Two prompts more are longer where they are better; weights that were fitted to the others know it.
    assert labelled[1]["labels"]["held_out"]["mean"] == 1.0
    assert labelled[1]["contrasts"] == free["contrasts"]
    assert "6 labelled pairs" in " ".join(Path("preset.yaml").read_text().split())


def test_responses_of_pairs_that_are_cut_are_counted(calibrate, rows):
    made = [
        {"prompt": PROMPT.replace("lyon", city), "chosen": f"tea in {city} " + "tea " * 12, "rejected": "tea"}
        for city in ("lyon", "bern", "cork")
    ]
    outcome = calibrate("--pairs", rows("pairs.jsonl", *made))
    assert outcome.code == 0, outcome.err
    said = " ".join(outcome.out.split())
    assert "3 of 6 responses of pairs are longer than sampling.max_new_tokens (12) and are cut there" in said


def test_a_preset_that_is_there_is_never_overwritten(calibrate):
    Path("mine.yaml").write_text("terms: []")
    outcome = calibrate("--output", "mine.yaml")
    assert (outcome.code, outcome.err) == (
        2,
        "error: --output: mine.yaml exists already; remove it, or name another file\n",
    )
    assert Path("mine.yaml").read_text() == "terms: []"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "mine.json"], "--output: mine.json must end in .yaml"),
        (["--labels", "3"], "--labels: name the file of labelled pairs with --pairs"),
        (
            ["--pairs", "pairs.jsonl"],
            "pairs.jsonl row 2: rejected must be text, got NoneType",
        ),
        (["--pairs", "good.jsonl", "--labels", "5"], "--labels: good.jsonl has 2 pairs, fewer than 5"),
        (["--pairs", "missing.jsonl"], "missing.jsonl"),
        (
            ["--pairs", "good.jsonl"],
            "2 prompts. Add pairs of other prompts, raise --labels, or leave out --pairs",
        ),
        (["--pairs", "empty.jsonl"], "empty.jsonl is empty; name a file whose rows have prompt"),
        (["--pairs", "text.jsonl"], "text.jsonl: no 'prompt' column; did you mean 'prompts'?"),
        (
            ["sampling.max_new_tokens=1"],
            "contrasts: cross-validation needs pairs of at least 2 prompts. A response",
        ),
        (["data.count=1"], "cagsr calibrate contrasts prompts with one another"),
    ],
)
def test_what_cannot_be_calibrated_is_said(calibrate, rows, arguments, message):
    good = {"prompt": PROMPT, "chosen": "tea", "rejected": "coffee"}
    rows("good.jsonl", good, good)
    rows("empty.jsonl")
    rows("text.jsonl", {"prompts": PROMPT, "chosen": "tea", "rejected": "coffee"})
    rows("pairs.jsonl", good, {"prompt": PROMPT, "chosen": "tea"})
    outcome = calibrate(*arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert not Path("preset.yaml").exists()
