"""`cagsr demo` end to end in two steps: what it shows, what it writes, and what becomes of an earlier demo."""

import json
from pathlib import Path

import pytest

from cagsr.io.shutdown import Stops
from cagsr.runs.directory import RunDirectory
from chat_models import save_assistant
from command_line import Outcome, typed_once

QUICK = ["train.steps=2", "train.warmup_steps=0", "train.prompts_per_step=2", "train.micro_batch=6"]
QUICK += ["sampling.candidates=3", "sampling.max_new_tokens=9", "data.count=11", "data.evaluation_count=3"]
METRICS = {"slot_error_rate", "coverage", "perfect", "clean", "hallucination", "repetition", "length"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, Outcome]:
    """A demo that nothing happened to, of the model that it takes unasked, and what its command said."""
    place = tmp_path_factory.mktemp("demo")
    return place / "runs/demo", typed_once(place, ["demo", *QUICK])


@pytest.mark.parametrize("kind", ["encoder-decoder", "causal"])
def test_the_demo_shows_a_table_samples_and_what_the_method_is_not_for(cagsr, kind, request):
    if kind == "encoder-decoder":
        directory, outcome = request.getfixturevalue("whole")
    else:
        directory, outcome = Path("runs/demo"), cagsr("demo", "--model", kind, *QUICK)
    config = json.loads((directory / "model/config.json").read_text())
    assert config.get("is_encoder_decoder", False) == (kind == "encoder-decoder")
    assert (outcome.code, outcome.err) == (0, ""), outcome.err
    assert "held out; mean and 95 % interval" in outcome.out
    assert "cagsr against base, paired:" in outcome.out
    assert "Before and after" in outcome.out
    assert outcome.out.count("\n  base  ") == 3
    assert "What this is not good for:" in outcome.out
    assert "\x1b" not in outcome.out
    assert "\r" not in outcome.out
    summary = json.loads((directory / "summary.json").read_text())
    assert list(summary) == ["task", "seed", "seconds", "systems", "differences"]
    assert {"base", "cagsr"} <= set(summary["systems"])
    assert {f"{name}-base" for name in summary["systems"] if name != "base"} == set(summary["differences"])
    for metrics in (*summary["systems"].values(), *summary["differences"].values()):
        assert set(metrics) == METRICS
        assert all(set(interval) == {"mean", "low", "high"} for interval in metrics.values())


def test_the_demo_of_a_pretrained_assistant_learns_its_heads_and_compares_with_them(cagsr, tmp_path):
    """Of a tiny one: what is trained, measured and read is that of the real one."""
    save_assistant("assistant")
    quick = [*QUICK, "sampling.max_new_tokens=11", "model.name=assistant"]
    outcome = cagsr("demo", "--model", "instruct", *quick)
    assert outcome.code == 0, outcome.err
    assert "restaurants: 3 held-out prompts" in outcome.out
    shown = outcome.out.split("Before and after", 1)[1]
    assert shown.count("\n  base  ") == 3
    assert "<|im_start|>" not in shown.split("What this is not good for")[0]
    summary = json.loads(Path("runs/demo/summary.json").read_text())
    assert summary["task"] == "restaurants"
    learnt = json.loads(Path("runs/demo/heads.json").read_text())
    assert any(1.0 in row for row in learnt["weights"].values())
    rows = [json.loads(line) for line in Path("runs/demo/candidates.jsonl").read_text().splitlines()]
    assert rows[0]["prompt"].startswith("<|im_start|>user\nWrite one or two sentences describing")
    assert (Path("runs/demo/model") / "adapter_config.json").is_file()


def test_the_base_of_a_pretrained_assistant_is_not_made_anew(cagsr):
    outcome = cagsr("demo", "--model", "instruct", "--rebuild-base")
    assert outcome.code == 2
    assert "the base of this demo is a pretrained model" in outcome.err


def test_a_second_demo_moves_the_first_aside_and_says_so(cagsr):
    earlier = RunDirectory.create("runs/demo", "data: {task: slots}\n", {})
    earlier.add_metrics(1, {"loss": 0.5})
    earlier.write_summary({"systems": {}})
    identity = earlier.id
    first = {path.name: path.read_bytes() for path in Path("runs/demo").iterdir() if path.is_file()}
    again = cagsr("demo", *QUICK, "--json", "--seed", "3", "train.mixed_precision=bf16")
    assert again.code == 0, again.err
    assert f"runs/demo was an earlier run; it is now runs/demo-{identity}" in again.err
    moved = Path(f"runs/demo-{identity}")
    assert {path.name: path.read_bytes() for path in moved.iterdir() if path.is_file()} == first
    summary = json.loads(again.out)
    assert summary == json.loads(Path("runs/demo/summary.json").read_text())
    assert summary["seed"] == 3


def test_a_demo_that_has_not_ended_is_left_alone(cagsr):
    earlier = RunDirectory.create("runs/demo", "data: {task: slots}\n", {})
    outcome = cagsr("demo", *QUICK)
    assert outcome.code == 2
    assert f"error: runs/demo belongs to run {earlier.id} (step 0)" in outcome.err
    assert [path.name for path in Path("runs").iterdir()] == ["demo"]


def test_a_demo_that_was_stopped_goes_on_and_a_finished_one_has_nothing_to_do(whole, cagsr, monkeypatch):
    requested, asked = Stops.requested, [15]
    monkeypatch.setattr(Stops, "requested", lambda stops: asked.pop() if asked else requested(stops))
    stopped = cagsr("demo", *QUICK, "--directory", "broken")
    assert stopped.code == 75
    resumed = cagsr("demo", *QUICK, "--directory", "broken", "--resume", "--json")
    assert resumed.code == 0, resumed.err
    summaries = resumed.out, (whole[0] / "summary.json").read_text()
    untimed = [{**json.loads(summary), "seconds": 0} for summary in summaries]
    assert untimed[0] == untimed[1]
    weights = [(place / "model/model.safetensors").read_bytes() for place in (Path("broken"), whole[0])]
    assert weights[0] == weights[1]
    again = cagsr("demo", *QUICK, "--directory", "broken", "--resume")
    assert (again.code, again.out) == (0, "broken is finished; nothing to do.\n")


def test_a_directory_that_is_no_run_of_ours_is_left_alone(cagsr):
    Path("runs/demo").mkdir(parents=True)
    Path("runs/demo/thesis.tex").write_text("mine")
    outcome = cagsr("demo", *QUICK)
    assert outcome.code == 2
    assert outcome.err == (
        "error: runs/demo holds files of no run (thesis.tex). Choose another directory. "
        "A demo is given another with --directory.\n"
    )
    assert [path.name for path in Path("runs").iterdir()] == ["demo"]
