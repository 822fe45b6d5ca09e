"""`cagsr lm-eval`: a run's base and result by lm-evaluation-harness, for which a program stands in here.

It writes the files that version 0.4.13 was seen to write; the keys that nothing reads are left out.
"""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cagsr.experiments import lm_harness
from cagsr.models.load import save_model
from cagsr.models.load_policy import load_policy

STAND_IN = """#!{python}
import json, os, pathlib, shutil, sys
assert "RANK" not in os.environ
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if "--log_samples" in sys.argv:
    given["--output_path"] = sys.argv[sys.argv.index("--output_path") + 1]
model = dict(part.split("=", 1) for part in given["--model_args"].split(","))
trained = "/run/" in model["pretrained"]
with open("calls.jsonl", "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
print("what it says on standard output is no result of ours")
if trained and os.path.exists("fails"):
    sys.exit(1)
if os.path.exists("keep") and trained:
    shutil.copytree(model["pretrained"], "kept")
docs = open("docs").read() if os.path.exists("docs") else "d"
acc, f1 = ([1.0, 1.0, 0.0, 0.0], [0.75, 0.5, 1.0, 0.25]) if trained else ([0.0, 1.0, 0.0, 0.0], [0.5, 0.25, 0.75, 0.0])
place = pathlib.Path(given["--output_path"], model["pretrained"].replace("/", "__"))
place.mkdir(parents=True)
date = "2026-12-01T17-59-32.882972"
results = {{
    "results": {{
        "ten": {{
            "name": "ten", "alias": "ten", "sample_len": 4, "acc,none": sum(acc) / 4, "acc_stderr,none": 0.25,
            "f1,first": sum(f1) / 4, "f1_stderr,first": "N/A", "word_perplexity,none": 7.0 if trained else 11.0,
            "word_perplexity_stderr,none": float("nan"),
        }},
        "all": {{"alias": "all", "acc,none": sum(acc) / 4, "acc_stderr,none": 0.25}},
    }},
    "group_subtasks": {{"all": ["ten"]}},
    "versions": {{"ten": 1.0}},
    "higher_is_better": {{"ten": {{"acc": True, "f1": True, "word_perplexity": False}}}},
    "n-samples": {{"ten": {{"original": 4, "effective": 4}}}},
    "lm_eval_version": "0.4.13",
}}
if os.path.exists("old"):
    del results["n-samples"]
place.joinpath(f"results_{{date}}.json").write_text(json.dumps(results))
with open(place / f"samples_ten_{{date}}.jsonl", "w") as file:
    for number in (2, 0, 3, 1):
        about = {{"doc_id": number, "doc": {{}}, "target": "0", "doc_hash": docs + str(number)}}
        none, first = {{"acc": acc[number], "word_perplexity": [-3.0, 2]}}, {{"f1": f1[number]}}
        for name, values in (("none", none), ("first", first)):
            file.write(json.dumps({{**about, "filter": name, "metrics": list(values), **values}}) + "\\n")
(place / f"samples_ten_hard_{{date}}.jsonl").write_text("no row of this task")
"""


@pytest.fixture
def harness(tmp_path, monkeypatch):
    """A stand-in as ``lm_eval`` on PATH."""
    program = tmp_path / "bin/lm_eval"
    program.parent.mkdir()
    program.write_text(STAND_IN.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)


def calls() -> list[list[str]]:
    return [json.loads(line) for line in Path("calls.jsonl").read_text().splitlines()]


def test_both_are_measured_alike_and_the_report_shows_what_moved(finished, harness, cagsr, models, tmp_path):
    (tmp_path / "tasks").mkdir()
    settings = [
        "--tasks",
        "ten,all",
        "--limit",
        "4",
        "--seed",
        "11",
        "--include-path",
        "tasks",
        "--device",
        "cpu",
    ]
    outcome = cagsr("lm-eval", "run", *settings, "--apply-chat-template", "--json")
    assert outcome.code == 0, outcome.err
    first, second = calls()
    assert first[:4] == [
        "--model",
        "hf",
        "--model_args",
        f"pretrained={models.resolve() / 't5'},dtype=float32",
    ]
    assert second[3] == f"pretrained={tmp_path / 'run/model'},dtype=float32"
    same = ["--tasks", "ten,all", "--limit", "4.0", "--seed", "11", "--batch_size", "1", "--device", "cpu"]
    assert first[4:-3] == second[4:-3] == [*same, "--include_path", "tasks", "--apply_chat_template"]
    assert (first[-3], first[-1]) == ("--output_path", "--log_samples")
    found = {(row["task"], row["metric"]): row for row in json.loads(outcome.out)}
    assert [*found] == [("ten", "acc"), ("ten", "f1"), ("ten", "word_perplexity"), ("all", "acc")]
    acc = found["ten", "acc"]
    assert (acc["base"], acc["result"], acc["difference"], acc["base_stderr"]) == (0.25, 0.5, 0.25, 0.25)
    assert (acc["low"], acc["high"], acc["samples"]) == (0.0, 0.75, 4)  # one of four pairs moved, by 1
    f1 = found["ten", "f1"]
    assert (f1["filter"], f1["base"], f1["result"], f1["result_stderr"]) == ("first", 0.375, 0.625, None)
    assert (f1["low"], f1["high"]) == (0.25, 0.25)  # each pair moved by as much
    perplexity = found["ten", "word_perplexity"]
    assert (perplexity["difference"], perplexity["low"], perplexity["base_stderr"]) == (-4.0, None, None)
    assert found["all", "acc"]["low"] is None  # of a group there are no samples
    kept = json.loads(Path("run/lm-eval.json").read_text())
    assert kept["table"] == json.loads(outcome.out)
    assert not list(Path("run").glob(".lm-eval-*"))
    assert cagsr("report", "run").code == 0
    page = Path("run/report.html").read_text()
    assert (
        "<td>f1, first</td><td>4</td><td>.375</td><td>.625</td><td>.250</td><td>[.250, .250] ▲</td>" in page
    )
    again = cagsr("lm-eval", "run", *settings, "--apply-chat-template")
    assert again.code == 0
    assert "measured before with these settings" in again.out
    assert len(calls()) == 2


def test_a_second_half_that_failed_is_measured_without_the_first(finished, harness, cagsr):
    Path("fails").touch()
    failed = cagsr("lm-eval", "run", "--tasks", "ten")
    assert failed.code == 2
    assert "error: lm-eval ended with 1 and 0 files of results" in failed.err
    assert len(calls()) == 2
    Path("fails").unlink()
    assert cagsr("lm-eval", "run/best", "--tasks", "ten").code == 0
    assert len(calls()) == 3
    assert "run/best" in calls()[2][3]
    # Other settings are for both, and figures of other documents are not put side by side.
    assert cagsr("lm-eval", "run/best", "--tasks", "ten", "--seed", "3").code == 0
    assert len(calls()) == 5
    Path("docs").write_text("e")
    refused = cagsr("lm-eval", "run", "--tasks", "ten", "--seed", "3")
    assert refused.code == 2
    assert "or on other documents; remove run/lm-eval.json and measure both anew" in " ".join(
        refused.err.split()
    )
    Path("run/lm-eval.json").write_text("{")
    assert cagsr("lm-eval", "run", "--tasks", "ten").code == 4


def test_an_adapter_is_measured_merged(finished, harness, cagsr, models, tmp_path):
    adapted = load_policy(models / "t5", lora={"r": 2})
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.01)
    save_model(adapted, Path("run/model"))
    Path("keep").touch()
    assert cagsr("lm-eval", "run", "--tasks", "ten", "--dtype", "bfloat16").code == 0
    first, second = [call[3] for call in calls()]
    assert first == f"pretrained={models.resolve() / 't5'},dtype=bfloat16"
    assert second.startswith(f"pretrained={tmp_path}/run/.lm-eval-")
    assert second.endswith("/model,dtype=bfloat16")
    merged, base = load_file("kept/model.safetensors"), load_file(models / "t5/model.safetensors")
    assert merged.keys() == base.keys()
    key = next(key for key in base if key.endswith("SelfAttention.q.weight"))
    assert (merged[key].dtype, torch.equal(merged[key], base[key].bfloat16())) == (torch.bfloat16, False)
    assert not list(Path("run").glob(".lm-eval-*"))


def test_zeros_are_handed_on_and_new_rows_are_measured_anew(finished, harness, cagsr, monkeypatch):
    Path("tasks").mkdir()
    Path("tasks/ten.jsonl").write_text("{}")
    monkeypatch.setenv("RANK", "0")
    asked = ["lm-eval", "run", "--tasks", "ten", "--num-fewshot", "0", "--include-path", "tasks"]
    assert cagsr(*asked).code == 0
    assert calls()[0][4:10] == ["--tasks", "ten", "--num_fewshot", "0", "--seed", "0"]
    assert json.loads(Path("run/lm-eval.json").read_text())["measured"] == (
        "model/: tasks ten, num_fewshot 0, seed 0, dtype float32, batch_size 1, include_path tasks"
    )
    Path("tasks/ten.jsonl").write_text("{} ")
    assert cagsr(*asked).code == 0
    assert len(calls()) == 4


def test_a_type_that_may_differ_between_the_two_is_refused(finished, harness, cagsr):
    outcome = cagsr("lm-eval", "run", "--tasks", "ten", "--dtype", "auto")
    assert outcome.code == 2
    said = " ".join(outcome.err.split())
    assert "--dtype" in said
    assert "'auto' is not one of" in said
    assert not Path("calls.jsonl").exists()


def test_an_adapter_on_the_hub_is_measured_as_it_was_loaded(tmp_path, monkeypatch):
    (tmp_path / "snapshot").mkdir()
    asked = []
    monkeypatch.setattr(lm_harness, "adapter_at", lambda *given: asked.append(given) or tmp_path / "snapshot")
    monkeypatch.setattr(lm_harness, "export", lambda source, place, dtype: asked.append(source) or place)
    told = lm_harness._Model("me/adapter", "c0ffee").whole(tmp_path / "whole", "bfloat16")
    assert told == f"pretrained={tmp_path / 'whole'},dtype=bfloat16"
    assert asked == [("me/adapter", "c0ffee"), str(tmp_path / "snapshot")]


def test_in_the_run_itself_and_where_there_is_no_model(finished, harness, cagsr, tmp_path, monkeypatch):
    refused = cagsr("lm-eval", "run/checkpoints", "--tasks", "ten")
    assert refused.code == 2
    assert "run/checkpoints is no model; wait for the end of the run, or name its best/" in refused.err
    monkeypatch.chdir("run")
    assert cagsr("lm-eval", ".", "--tasks", "ten").code == 0
    assert f"pretrained={tmp_path / 'run/model'}," in calls()[1][3]


def test_files_of_another_version_are_no_traceback(finished, harness, cagsr):
    Path("old").touch()
    outcome = cagsr("lm-eval", "run", "--tasks", "ten")
    assert outcome.code == 2
    said = " ".join(outcome.err.split())
    assert "lm-eval's files cannot be read (KeyError: 'n-samples'); they are known of version 0.4.13" in said


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["run"], "there is no lm_eval on PATH. Install it into an environment of its own"),
        (["run", "--python", "nowhere"], "--python: nowhere cannot be started: No such file"),
        (["run", "--python", "/bin/false"], "--python: /bin/false has no lm_eval. Install it"),
    ],
)
def test_without_the_harness_it_says_how_to_install_it(finished, cagsr, monkeypatch, given, message):
    monkeypatch.setenv("PATH", "")
    outcome = cagsr("lm-eval", *given, "--tasks", "ten")
    assert outcome.code == 2
    assert message in " ".join(outcome.err.split())


def test_what_is_no_run_and_a_base_that_is_another_are_refused(
    finished, harness, cagsr, variant, monkeypatch
):
    assert "holds no run to resume" in cagsr("lm-eval", "nowhere", "--tasks", "ten").err
    config = Path("run/config.yaml")
    name = next(
        line for line in config.read_text().splitlines() if line.startswith("  name: ") and "t5" in line
    )
    other = variant("t5", config={"dropout_rate": 0.3})
    config.write_text(config.read_text().replace(name, f"  name: {other}"))
    outcome = cagsr("lm-eval", "run", "--tasks", "ten")
    assert outcome.code == 2
    assert "is not what run was trained from (tokenizer and model config is another)" in " ".join(
        outcome.err.split()
    )
    assert not Path("calls.jsonl").exists()
