"""`cagsr probe`: from a config to a verdict."""

import json

import pytest
import torch
from transformers import LlamaForCausalLM

from cagsr.rewards.heads_found import FOLLOWS

SMALL = ["--prompts", "3", "sampling.candidates=3", "sampling.max_new_tokens=5", "train.steps=2"]


@pytest.fixture
def probe(cagsr, models):
    def run(*arguments, model="t5"):
        return cagsr("probe", f"model.name={models / model}", *SMALL, *arguments)

    return run


@pytest.mark.parametrize("model", ["t5", "llama"])
def test_json_is_one_line_with_a_verdict_and_its_reasons(probe, model):
    outcome = probe("data.task=slots", "--json", model=model)
    assert outcome.code == 0
    told = " ".join(outcome.err.split())
    assert told.startswith(
        "development prompts: 3 of 3 rows used. reward: robust is knockout for this base: "
    )
    assert "the prompt of row 1 as the model reads" in told
    assert outcome.out.count("\n") == 1
    summary = json.loads(outcome.out)
    assert summary["verdict"] in ("go", "caution", "no")
    assert summary["reasons"]
    assert (summary["prompts"], summary["candidates"], summary["split"]) == (3, 3, "development")
    assert next(iter(summary["rewards"])) == summary["configured"] == "robust"
    assert summary["measured"] == "knockout"
    assert not {"knockout", "attention-values"} & set(summary["rewards"])
    for found in summary["rewards"].values():
        assert set(found) >= {"quality", "said", "invented", "repeated", "rouge_l", "adversaries", "verdict"}
        assert all(share is None or 0 <= share <= 1 for share in found["adversaries"].values())
    assert summary["rewards"]["oracle"]["quality"]["partial"]["mean"] in (0, pytest.approx(1))
    assert {"coverage gate", "surprise", "knockout"} <= set(summary["signals"])
    assert not {"oracle", "reward_model", "reference_overlap"} & set(summary["signals"])
    assert summary["cost"]["responses"] == 2 * 8 * 3
    assert summary["missing"] == {"pairs": "none given (--pairs FILE)"}


def test_the_table_fits_80_columns_and_ends_with_the_verdict(probe):
    outcome = probe("data.task=slots", "reward.preset=length")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in outcome.out
    for said in ("fooled by", "headroom", "entropy", "shuffled", "length", "robust"):
        assert said in outcome.out
    verdict = next(line for line in lines if line.startswith(("GO: ", "CAUTION: ", "NO: ")))
    assert lines[lines.index(verdict) + 1].startswith("  - ")


@pytest.fixture
def telling(variant):
    """A llama whose sharp logits make knockouts differ by more than noise, so that heads can be told apart."""
    path = variant("llama")
    model = LlamaForCausalLM.from_pretrained(path)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(4)
    model.save_pretrained(path)
    return path


TELLING = ["data.task=slots", "--prompts", "5", "sampling.candidates=5", "sampling.max_new_tokens=9"]
ASKED = [*TELLING, "reward.preset=attention"]


def test_learnt_heads_are_a_table_of_layers_and_decide_between_attention_and_knockouts(
    probe, telling, monkeypatch
):
    found = json.loads(probe(*ASKED, "--json", model=telling).out)
    heads, above = found["heads"], probe(*ASKED, model=telling)
    assert [(one["layer"], one["heads"]) for one in heads["layers"]] == [(0, 2), (1, 2)]
    assert sum(one["read"] for one in heads["layers"]) > 0
    assert heads["follows"] < FOLLOWS
    assert (heads["preset"], found["configured"], found["preset"]) == ("knockout", "attention", "knockout")
    lines = above.out.splitlines()
    assert max(map(len, lines)) <= 80
    at = lines.index(" layer  agree  read")
    shown = [line.split() for line in lines[at + 2 : at + 4]]
    assert [(int(layer), int(read)) for layer, _, read in shown] == [
        (one["layer"], one["read"]) for one in heads["layers"]
    ]
    assert "ask for knockouts (reward.preset: knockout)" in " ".join(above.out.split())
    monkeypatch.setattr("cagsr.rewards.heads_found.FOLLOWS", heads["follows"])
    monkeypatch.setattr("cagsr.rewards.heads_found.ENOUGH", heads["pieces"])
    monkeypatch.setattr("cagsr.rewards.heads_found.UNDECIDED", heads["undecided"])
    served = json.loads(probe(*ASKED, "--json", model=telling).out)
    assert (served["heads"]["preset"], served["preset"]) == ("attention", "attention")


def test_a_choice_is_measured_as_what_it_is_for_this_base(probe, telling, monkeypatch):
    monkeypatch.setattr("cagsr.rewards.heads_found.FOLLOWS", -1.0)
    monkeypatch.setattr("cagsr.rewards.heads_found.ENOUGH", 1)
    monkeypatch.setattr("cagsr.rewards.heads_found.UNDECIDED", 0.0)
    found = json.loads(probe(*TELLING, "--json", model=telling).out)
    assert (found["configured"], found["measured"]) == ("robust", "attention-values")
    named = json.loads(probe(*TELLING, "reward.preset=attention-values", "--json", model=telling).out)
    assert found["rewards"]["robust"] == named["rewards"]["attention-values"]
    assert "knockout" in found["rewards"]
    shown = " ".join(probe(*TELLING, model=telling).out.split())
    assert "- robust is attention-values for this base" in shown
    assert found["yaml"] is None or "  preset: robust\n" in found["yaml"] or found["preset"] != "robust"


def test_without_learnt_heads_a_probe_says_in_a_line_how_to_have_them(probe):
    outcome = probe("data.task=slots", "reward.preset=coverage")
    assert "  heads: none learnt; with reward.preset=robust a probe says whether" in outcome.out
    assert "agree" not in {word for line in outcome.out.splitlines() for word in line.split()}


def test_without_labels_the_probe_still_runs_and_says_so(probe, rows):
    source = rows("p.jsonl", *({"prompt": f"city {name}"} for name in ("lyon", "rome", "oslo", "porto")))
    outcome = probe(f"data.source={source}")
    assert outcome.code == 0, outcome.err
    assert "no checker: none (data.checker)" in outcome.out
    assert "no references: 3 of 3 prompts have none" in outcome.out
    assert "Nothing at hand tells good responses from bad ones" in outcome.out
    summary = json.loads(probe(f"data.source={source}", "--json").out)
    assert (summary["split"], summary["prompts"]) == ("train", 3)
    assert summary["verdict"] in ("caution", "no")
    assert "oracle" not in summary["rewards"]
    assert "greedy_quality" not in summary["base"]


def test_labelled_pairs_are_one_more_truth(probe, rows):
    source = rows("p.jsonl", *({"prompt": f"city {name}"} for name in ("lyon", "rome", "oslo", "porto")))
    pairs = rows(
        "pairs.jsonl",
        {"prompt": "city lyon", "chosen": "city lyon tea", "rejected": "tea"},
        {"prompt": "city rome", "chosen": "day", "rejected": "city rome"},
    )
    summary = json.loads(probe(f"data.source={source}", "--pairs", pairs, "--json").out)
    assert summary["rewards"]["length"]["pairs"]["mean"] == 0.5
    assert summary["rewards"]["length"]["pairs"]["count"] == 2
    assert "pairs" not in summary["missing"]
    shown = probe(f"data.source={source}", "--pairs", pairs).out.splitlines()
    assert any(line.split() == ["rewards", "pairs"] for line in shown)
    assert max(map(len, shown)) <= 80


def test_pairs_that_the_checker_cannot_read_are_judged_without_the_oracle_and_it_is_said(probe, rows):
    pairs = rows("pairs.jsonl", {"prompt": "city : lyon", "chosen": "in lyon", "rejected": "tea"})
    outcome = probe("data.task=slots", "--pairs", pairs)
    assert outcome.code == 0, outcome.err
    said = "  no oracle on pairs: the checker cannot read their rows (KeyError: 'slots')"
    assert said in outcome.out.splitlines()
    assert max(map(len, outcome.out.splitlines())) <= 80
    summary = json.loads(probe("data.task=slots", "--pairs", pairs, "--json").out)
    assert "pairs" not in summary["rewards"]["oracle"]
    assert "quality" in summary["rewards"]["oracle"]
    assert summary["rewards"]["robust"]["pairs"]["count"] == 1


def test_a_reward_of_ones_own_is_probed_beside_the_presets(probe):
    terms = "reward.terms=[{signal: lexical_overlap, weight: 2, standardise: none}]"
    summary = json.loads(probe("data.task=slots", terms, "--json").out)
    assert summary["configured"] == "reward.terms"
    assert next(iter(summary["rewards"])) == "reward.terms"
    assert "knockout" in summary["rewards"]


def test_a_single_response_is_refused(probe):
    outcome = probe("data.task=slots", "sampling.candidates=1")
    assert outcome.code == 2
    assert "sampling.candidates to 2 or more" in outcome.err


def test_a_single_prompt_is_refused(probe, rows):
    outcome = probe(f"data.source={rows('p.jsonl', {'prompt': 'city lyon'})}")
    assert (outcome.code, outcome.err) == (
        2,
        "error: cagsr probe hands responses to other prompts, and there is only one; give more data\n",
    )


def test_a_pair_whose_prompt_does_not_fit_the_model_is_named(probe, rows):
    pairs = rows("pairs.jsonl", {"prompt": "describe drink : tea" * 40, "chosen": "tea", "rejected": "no"})
    refused = probe("data.task=slots", "--pairs", pairs, model="llama")
    assert refused.code == 2
    assert "pairs.jsonl row 1: " in refused.err
    assert "> 64 context. Set data.max_prompt_tokens" in refused.err


@pytest.mark.parametrize(
    ("verdict", "fail_on", "code"),
    [
        ("no", "never", 0),
        ("no", None, 0),
        ("no", "no", 5),
        ("no", "caution", 5),
        ("caution", "no", 0),
        ("caution", "caution", 5),
        ("go", "caution", 0),
    ],
)
@pytest.mark.parametrize("json_too", [False, True])
def test_a_pipeline_may_stop_at_a_verdict(cagsr, monkeypatch, verdict, fail_on, code, json_too):
    shown = []
    monkeypatch.setattr("cagsr.probing.run.probe", lambda *_: {"verdict": verdict})
    monkeypatch.setattr("cagsr.probing.table.show", lambda summary, _: shown.append(summary))
    asked = [] if fail_on is None else ["--fail-on", fail_on]
    outcome = cagsr("probe", "data.task=slots", *asked, *["--json"] * json_too)
    assert outcome.code == code
    assert json.loads(outcome.out) == {"verdict": verdict} if json_too else shown == [{"verdict": verdict}]
    said = f"error: cagsr probe: the verdict is {verdict} (--fail-on {fail_on})\n"
    assert outcome.err == (said if code else "")


def test_a_reward_worth_nothing_fails_the_pipeline_that_asks(probe):
    outcome = probe("data.task=slots", "reward.preset=length", "--fail-on", "caution", "--json")
    assert (outcome.code, json.loads(outcome.out)["verdict"]) in ((5, "no"), (5, "caution"))
