"""`cagsr train`: what a run directory holds, how a run goes on, and every way of training once."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from cagsr.config import Config
from cagsr.models.load import load_model
from cagsr.models.policy import Policy
from hub_cache import COMMITS, HubCache


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


STEP_KEYS = {
    "step", "reward", "reward_spread", "signal/knockout", "signal/surprise", "signal/retold",
    "signal/reference_logprob", "signal/repetition", "signal/unfinished", "length", "finished", "empty",
    "repetition", "kl_response", "kl", "entropy", "tokens", "learning_rate", "kl_coefficient", "loss",
    "policy_loss", "clipped", "grad_norm", "seconds", "tokens_per_second", "memory",
}  # fmt: skip


STARTED = (
    "error: run was started with something else:\n  {}\n"
    "Go on with what it was started with, or pass --accept-changes to go on with this.\n"
)


def test_a_run_directory_holds_what_the_contract_says(finished):
    names = {path.name for path in Path("run").iterdir()}
    files = {"config.yaml", "run.json", "run.lock", "metrics.jsonl", "candidates.jsonl", "summary.json"}
    files |= {"evaluations.jsonl", "heads.json", "report.html"}
    assert names == files | {"checkpoints", "model", "best"}
    assert [path.name for path in Path("run/checkpoints").iterdir()] == ["step-000002"]
    config = Config.load("run/config.yaml")
    assert (config.train.steps, config.run.directory, config.data.task) == (2, "run", "slots")
    assert Config.load("run/config.yaml").as_yaml() == Path("run/config.yaml").read_text()
    about = json.loads(Path("run/run.json").read_text())
    assert set(about) == {"id", "started", "git", "identity", "changes"}
    assert {"model", "data", "reward", "code of cagsr", "torch", "train.learning_rate"} <= set(
        about["identity"]
    )
    assert len(about["identity"]["data"]) == 64


def test_metrics_have_a_row_a_step_and_a_row_an_evaluation(finished):
    rows = lines("run/metrics.jsonl")
    steps = [row for row in rows if "loss" in row]
    evaluations = [row for row in rows if "evaluation/reward" in row]
    assert [row["step"] for row in steps] == [1, 2]
    assert set(steps[0]) == STEP_KEYS | {"shuffled"}
    assert set(steps[1]) == STEP_KEYS
    assert [row["step"] for row in evaluations] == [0, 1, 2]
    assert {"evaluation/slot_error_rate", "evaluation/length", "evaluation/finished"} <= set(evaluations[0])
    for row in evaluations:
        means = [name for name in row if f"{name}/low" in row]
        assert "evaluation/reward" in means
        assert all(row[f"{name}/low"] <= row[name] <= row[f"{name}/high"] for name in means)
    assert steps[0]["tokens"] == pytest.approx(steps[0]["length"] * 6)


def test_candidates_say_what_a_knockout_found_where_the_reward_made_one(train):
    assert train("reward.preset=robust").code == 0
    for row in lines("run/candidates.jsonl"):
        assert len(row["segments"]) == len(row["explained"]) > 0
        # Said is a sigmoid of nats; the signal is their mean.
        said = [1 / (1 + math.exp(3 - nats)) for nats in row["explained"]]
        assert sum(said) / len(said) == pytest.approx(row["signals"]["knockout"], abs=0.01)


def test_what_the_reward_is_for_this_base_is_said_once_and_kept(finished):
    assert " ".join(finished.out.split()).count("reward: robust is knockout for this base: ") == 1
    kept = json.loads(Path("run/heads.json").read_text())
    assert kept["preset"] == "knockout"
    assert f"for this base: {kept['reason']}" in " ".join(finished.out.split())
    identity = json.loads(Path("run/run.json").read_text())["identity"]
    assert identity["reward that was chosen"] == "knockout"
    config = Config.load("run/config.yaml").reward
    assert (config.preset, config.heads, config.salience.kind) == ("robust", None, None)


@pytest.fixture
def attentive(monkeypatch):
    """As if every base had heads that follow its knockouts."""
    with monkeypatch.context() as patched:
        patched.setattr("cagsr.rewards.heads_found.FOLLOWS", -1.0)
        patched.setattr("cagsr.rewards.heads_found.ENOUGH", 1)
        patched.setattr("cagsr.rewards.heads_found.UNDECIDED", 0.0)
        yield patched


def test_a_run_goes_on_with_the_reward_that_was_chosen(go_on, attentive):
    outcome = go_on("--accept-changes", "train.steps=3")
    assert outcome.code == 0, outcome.err
    assert "reward: robust is knockout for this base" in outcome.out
    assert "(as in run/heads.json)" in " ".join(outcome.out.split())
    assert "signal/knockout" in lines("run/metrics.jsonl")[-2]


def test_a_run_whose_reward_was_exchanged_is_refused(go_on):
    kept = json.loads(Path("run/heads.json").read_text())
    Path("run/heads.json").write_text(json.dumps(kept | {"preset": "attention-values"}))
    Path("run/summary.json").unlink()  # a run that is finished loads nothing
    outcome = go_on()
    assert outcome.code == 2
    assert "reward that was chosen: attention-values, was knockout" in " ".join(outcome.err.split())


def test_where_heads_serve_the_reward_reads_them_from_the_first_step_on(train, attentive):
    outcome = train("reward.preset=robust")
    assert outcome.code == 0, outcome.err
    said = " ".join(outcome.out.split())
    assert "reward: robust is attention-values for this base: its attention agrees with hiding " in said
    assert " heads of cross-attention of " in said
    steps = [row for row in lines("run/metrics.jsonl") if "loss" in row]
    signals = {"attended", "swapped", "surprise", "repetition", "unfinished"}
    assert all({f"signal/{name}" for name in signals} <= set(row) for row in steps)
    assert all(row["looked"] for row in lines("run/candidates.jsonl"))
    assert json.loads(Path("run/heads.json").read_text())["preset"] == "attention-values"


def test_every_evaluation_keeps_greedy_responses_of_the_base_and_of_the_model_as_it_was(go_on):
    rows = lines("run/evaluations.jsonl")
    assert [row["step"] for row in rows] == [0] * 2 + [1] * 2 + [2] * 2
    assert len({row["prompt"] for row in rows}) == 2
    # The means of these two prompts, which are all that the run was evaluated on, are the run's own numbers.
    for evaluation in (row for row in lines("run/metrics.jsonl") if "evaluation/reward" in row):
        of_step = [row for row in rows if row["step"] == evaluation["step"]]
        for name in ("reward", "length", "slot_error_rate"):
            mean = sum(row[name] for row in of_step) / 2
            assert mean == pytest.approx(evaluation[f"evaluation/{name}"], abs=1e-6)
    before = Path("run/evaluations.jsonl").read_text()
    again = go_on("--accept-changes", "train.steps=3")
    assert again.code == 0, again.err
    assert Path("run/evaluations.jsonl").read_text().startswith(before)
    assert [row["step"] for row in lines("run/evaluations.jsonl")][6:] == [3] * 2


def test_candidates_hold_every_response_of_a_prompt_with_its_signals(finished):
    rows = lines("run/candidates.jsonl")
    assert [row["step"] for row in rows] == [1] * 6 + [2] * 6
    for row in rows:
        assert set(row["signals"]) == {
            "knockout",
            "surprise",
            "retold",
            "reference_logprob",
            "repetition",
            "unfinished",
        }
        assert row["prompt"].startswith("announce") or row["prompt"]
        # The prompt's own tokens, end of sequence included, one number each.
        assert len(row["attended"]) == len(row["tokens"]) >= len(row["prompt"].split())
        assert sum(row["weighted"].values()) == pytest.approx(row["reward"], abs=1e-5)
        assert len(row["attention"]["response"]) == len(row["attention"]["weights"])
    group = rows[:3]
    assert len({row["prompt_index"] for row in group}) == 1
    assert sum(row["advantage"] for row in group) == pytest.approx(0, abs=1e-5)


def test_the_saved_model_is_the_trained_one_and_plain_transformers_loads_it(finished):
    trained = load_file("run/checkpoints/step-000002/model.safetensors")
    model = AutoModelForSeq2SeqLM.from_pretrained("run/model", attn_implementation="eager").eval()
    ours, _ = load_model("run/model")
    words = AutoTokenizer.from_pretrained("run/model")
    inputs = words(["artist : alba ; city : lyon"], return_tensors="pt")
    inputs["decoder_input_ids"] = torch.tensor([[0, 5, 9]])
    with torch.no_grad():
        plain, again = model(**inputs).logits, ours(**inputs).logits
    assert torch.allclose(plain, again, atol=1e-4)
    weight = model.encoder.block[0].layer[0].SelfAttention.q.weight
    assert torch.equal(weight, trained["model.encoder.block.0.layer.0.SelfAttention.q.weight"])


def test_the_model_card_says_reward_algorithm_and_steps(finished, models):
    for name in ("model", "best"):
        card = Path(f"run/{name}/README.md").read_text()
        assert "/t5` after 2 steps of grpo on 11 prompts" in card
        assert str(models) not in card
        assert "Reward: preset `knockout`, chosen by `robust`; observer: reference; salience: uniform" in card
        assert "| slot_error_rate |" in card


def test_the_output_is_made_of_plain_lines_without_other_libraries_noise(finished):
    assert finished.err == ""
    assert "train prompts: 11 of 11 rows used." in finished.out
    assert "step 1/2" in finished.out
    assert "\x1b" not in finished.out
    assert "\r" not in finished.out


def test_json_alone_stands_on_standard_output(train):
    outcome = train("--json")
    summary = json.loads(outcome.out)
    assert summary == json.loads(Path("run/summary.json").read_text())
    assert summary["steps"] == 2
    assert set(summary) == {"steps", "best", "last", "seconds"}
    assert "step 2/2" in outcome.err


def test_tensorboard_gets_event_files_in_the_run_directory(train):
    assert train("run.trackers=[tensorboard]").code == 0
    assert list(Path("run").rglob("events.out.tfevents*"))


def test_a_tracker_that_is_not_installed_is_named_before_the_model_loads(train):
    outcome = train("run.trackers=[trackio]", model=Path("nowhere"))
    assert (outcome.code, outcome.err) == (
        2,
        "error: run.trackers: trackio is not installed: pip install trackio\n",
    )


def test_a_collapse_that_stops_is_recorded_and_the_run_goes_on(train):
    collapse = ["reward.terms=[{signal: length}]", "train.learning_rate=0.05", "train.steps=5"]
    stop = "watch.entropy={limit: 0.9999, action: stop, patience: 1}"
    outcome = train(*collapse, stop)
    assert outcome.code == 75
    assert "entropy is" in outcome.err
    assert "Stopped. Look at candidates.jsonl" in outcome.err
    stopped = json.loads(Path("run/summary.json").read_text())["stopped"]
    assert stopped in outcome.err
    at = int(stopped.removeprefix("step ").split(":")[0])
    assert [row["step"] for row in lines("run/metrics.jsonl") if "loss" in row] == list(range(1, at + 1))
    again = train(*collapse, "watch.entropy={limit: null}", "--resume", "--accept-changes")
    assert again.code == 0, again.err
    assert [row["step"] for row in lines("run/metrics.jsonl") if "loss" in row] == [1, 2, 3, 4, 5]
    assert json.loads(Path("run/summary.json").read_text())["steps"] == 5


def test_a_finished_run_resumed_stays_as_it_is(go_on):
    metrics, weights = Path("run/metrics.jsonl").read_text(), load_file("run/model/model.safetensors")
    again = go_on()
    assert again.code == 0, again.err
    assert "run is finished (step 2); nothing to do." in again.out
    assert Path("run/metrics.jsonl").read_text() == metrics
    assert all(torch.equal(load_file("run/model/model.safetensors")[name], weights[name]) for name in weights)


def test_a_run_resumed_with_more_steps_goes_on_and_its_config_says_so(go_on):
    again = go_on("--accept-changes", "train.steps=3", "train.evaluate_every=0")
    assert again.code == 0, again.err
    changes = json.loads(Path("run/run.json").read_text())["changes"]
    assert [(change["was"], change["is"]) for change in changes] == [
        ({"train.steps": 2, "train.evaluate_every": 1}, {"train.steps": 3, "train.evaluate_every": 0})
    ]
    assert [row["step"] for row in lines("run/metrics.jsonl") if "loss" in row] == [1, 2, 3]
    assert Config.load("run/config.yaml").train.steps == 3
    assert "after 3 steps" in Path("run/model/README.md").read_text()


def test_one_command_with_resume_starts_a_run_and_later_goes_on_with_it(train):
    first, then = (train("--resume", "train.save_every=1") for _ in range(2))
    assert (first.code, then.code) == (0, 0), first.err + then.err
    assert "run holds no run yet: --resume starts one." in first.out
    assert [row["step"] for row in lines("run/metrics.jsonl") if "loss" in row] == [1, 2]
    assert "run is finished (step 2); nothing to do." in then.out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.seed=5", STARTED.format("data.seed: 5, was 0")),
        ("train.learning_rate=0.1", STARTED.format("train.learning_rate: 0.1, was 0.01")),
        ("train.steps=1", STARTED.format("train.steps: 1, was 2")),
        (
            "run.directory=other",
            "error: other holds no run to resume: it has no run.json. Choose another directory.\n",
        ),
    ],
)
def test_what_cannot_go_on_is_named(go_on, change, message):
    Path("other").mkdir()
    Path("other/mine.txt").write_text("mine")
    before = Path("run/metrics.jsonl").read_bytes()
    outcome = go_on(change)
    assert (outcome.code, outcome.err) == (2, message)
    assert Path("run/metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("model", ["t5", "llama"])
def test_bf16_and_gradient_checkpointing_train(train, model):
    outcome = train("train.mixed_precision=bf16", "train.gradient_checkpointing=true", model=model)
    assert outcome.code == 0, outcome.err
    assert (
        load_file("run/model/model.safetensors")[
            "model.norm.weight" if model == "llama" else "shared.weight"
        ].dtype
        == torch.float32
    )


def test_a_rounded_copy_writes_and_a_run_goes_on_to_the_same_bits(train):
    settings = ["sampling.dtype=bfloat16", "model.lora.r=2", "train.learning_rate=0.01", "train.save_every=1"]
    for outcome in (
        train(*settings, "train.steps=2", "run.directory=whole", model="llama"),
        train(*settings, "train.steps=1", model="llama"),
        train(*settings, "train.steps=2", "--resume", "--accept-changes", model="llama"),
    ):
        assert outcome.code == 0, outcome.err
    whole, resumed = (load_file(f"{name}/model/adapter_model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    for row in [row for row in rows if "loss" in row]:
        assert row["importance"] == pytest.approx(1, abs=0.1)
        assert 0 < abs(row["mismatch"]) < 0.1


@pytest.mark.parametrize("lora", [[], ["model.lora.r=2"]])
def test_gradient_checkpointing_changes_nothing_but_memory(train, lora):
    settings = ["train.learning_rate=0.01", "sampling.max_new_tokens=5", *lora]
    name = "adapter_model.safetensors" if lora else "model.safetensors"
    assert train(*settings, model="llama").code == 0
    assert train(*settings, "run.directory=gc", "train.gradient_checkpointing=true", model="llama").code == 0
    plain, checkpointed = load_file(f"run/model/{name}"), load_file(f"gc/model/{name}")
    assert all(torch.allclose(plain[key], checkpointed[key], atol=1e-5) for key in plain)


def test_a_lora_run_saves_an_adapter_that_loads_merged(train, models):
    assert train("model.lora.r=2", "train.learning_rate=0.05").code == 0
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= {
        path.name for path in Path("run/model").iterdir()
    }
    adapter = load_file("run/model/adapter_model.safetensors")
    q = "decoder.block.1.layer.1.EncDecAttention.q"
    a, b = (adapter[f"base_model.model.{q}.lora_{side}.weight"] for side in "AB")
    base = load_file(models / "t5" / "model.safetensors")[f"{q}.weight"]
    merged, _ = load_model("run/model")
    assert b.abs().max() > 0
    # alpha / r = 32 / 2
    assert torch.allclose(merged.get_submodule(q).weight, base + 16 * b @ a, atol=1e-5)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert all(parameter.requires_grad for parameter in merged.parameters())
    assert train("run.directory=second", model=Path("run/model")).code == 0


def test_messages_are_trained_on_through_the_chat_template(train, rows, variant):
    template = "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} ; {% endfor %}assistant :"
    model = variant("llama", tokenizer_config={"chat_template": template})
    turns = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "tea"}]}
        for text in ("city lyon", "drink tea", "city porto")
    ]
    source = rows("chat.jsonl", *turns)
    outcome = train(f"data.source={source}", model=model, task=None)
    assert outcome.code == 0, outcome.err
    prompts = {row["prompt"] for row in lines("run/candidates.jsonl")}
    assert prompts <= {f"user : {text} ; assistant :" for text in ("city lyon", "drink tea", "city porto")}


@pytest.mark.parametrize("error", ["cpu", "accelerator"])
def test_memory_that_runs_out_is_said_with_what_would_help_and_the_run_goes_on(train, error, monkeypatch):
    forward, calls = Policy.forward, []

    def hungry(policy, rollout):
        calls.append(1)
        if len(calls) == 2:  # the update of the second step
            if error == "cpu":
                torch.empty(2**46)  # the allocator itself refuses
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(policy, rollout)

    monkeypatch.setattr(Policy, "forward", hungry)
    outcome = train("train.save_every=1")
    assert outcome.code == 71
    assert outcome.err.startswith("error: out of memory: ")
    assert "Lower train.micro_batch or sampling.max_new_tokens" in outcome.err
    assert "go on with --resume --accept-changes" in outcome.err
    monkeypatch.setattr(Policy, "forward", forward)
    again = train("train.save_every=1", "--resume", "--accept-changes", "train.micro_batch=3")
    assert again.code == 0, again.err
    assert [row["step"] for row in lines("run/metrics.jsonl") if "loss" in row] == [1, 2]


def test_a_time_limit_saves_and_stops_and_a_wrong_one_is_named(train):
    outcome = train("--max-time", "1s", "train.steps=5000", "train.save_every=0")
    assert outcome.code == 75
    assert "stopped by the time limit" in outcome.err
    assert "everything is saved, --resume goes on" in outcome.err
    assert json.loads(Path("run/summary.json").read_text())["stopped"] in outcome.err
    assert len(list(Path("run/checkpoints").iterdir())) == 1
    for wrong in ("", "h", "1d", "5", "0s", "1h 2m", "-3m"):
        outcome = train(f"--max-time={wrong}")
        assert outcome.code == 2
        assert f"error: --max-time: got {wrong!r}, expected hours, minutes, seconds" in outcome.err


def test_a_setting_that_was_accepted_holds_from_then_on(train):
    start = [
        "train.save_every=1",
        "train.schedule=constant",
        "train.learning_rate=0.01",
        "algorithm.kl_coefficient=0.1",
    ]
    assert train(*start).code == 0
    changed = ["train.steps=4", "train.learning_rate=0.003", "algorithm.kl_coefficient=0.7"]
    again = train(*start, *changed, "--resume", "--accept-changes")
    assert again.code == 0, again.err
    rows = [row for row in lines("run/metrics.jsonl") if "loss" in row]
    assert [row["learning_rate"] for row in rows] == [0.01, 0.01, 0.003, 0.003]
    assert [row["kl_coefficient"] for row in rows] == [0.1, 0.1, 0.7, 0.7]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["train.steps=1"], "is at step 2 already. Set more steps to go on."),
        (["train.steps=3", "model.name=nowhere"], "no directory 'nowhere' here"),
        (["train.steps=3", "algorithm.name=ppo"], "does not fit the model as it is configured now"),
    ],
)
def test_a_change_that_cannot_be_gone_on_with_leaves_the_run_as_it_was(go_on, change, message):
    files = ("run.json", "config.yaml", "summary.json", "metrics.jsonl")
    before = {name: Path("run", name).read_bytes() for name in files}
    outcome = go_on("--accept-changes", *change)
    assert outcome.code == 2
    assert message in outcome.err
    assert {name: Path("run", name).read_bytes() for name in before} == before
    assert go_on().code == 0


def test_a_moved_model_is_the_same_model(train, models, tmp_path):
    assert train("train.steps=1").code == 0
    moved = shutil.copytree(models / "t5", tmp_path / "moved")
    again = train("train.steps=1", "--resume", model=moved)
    assert again.code == 0, again.err
    assert "nothing to do" in again.out


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_again_by_itself(train):
    assert train("train.save_every=1", "train.steps=3").code == 0
    Path("run/summary.json").unlink()
    for checkpoint in Path("run/checkpoints").iterdir():
        (checkpoint / "optimizer.bin").write_bytes(b"")
    metrics = Path("run/metrics.jsonl").read_bytes()
    again = train("train.save_every=1", "train.steps=3", "--resume")
    assert again.code == 4
    assert "no checkpoint is as it was written" in again.err
    assert Path("run/metrics.jsonl").read_bytes() == metrics


def test_a_hub_model_that_moved_since_the_start_is_refused_by_its_commit(
    train, models, tmp_path, monkeypatch
):
    hub = HubCache(tmp_path / "hub", monkeypatch)
    for commit in reversed(COMMITS):
        hub.add("some/llama", models / "llama", commit)
    assert train("model.name=some/llama").code == 0
    assert json.loads(Path("run/run.json").read_text())["identity"]["model"] == COMMITS[0]
    hub.move("some/llama", COMMITS[1])
    outcome = train("model.name=some/llama", "--resume")
    assert outcome.code == 2
    assert outcome.err.endswith(STARTED.format(f"model: {COMMITS[1]}, was {COMMITS[0]}"))


def test_few_evaluation_prompts_and_responses_that_are_cut_off_are_said(trained):
    said = " ".join(trained[1].out.split())
    few = "warning: intervals over 2 prompts are too narrow, and their p-values too small; evaluate on more. A mean "
    assert few + "over them is uncertain by ±1.4 standard deviations at least" in said
    assert said.index(few) < said.index("evaluation at step 0")
    assert "of the responses were cut off at sampling.max_new_tokens (7)" in said
