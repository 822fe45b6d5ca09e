"""Two processes do what one does: the same groups, the same numbers, the same weights."""

import json
import os
import sys
from datetime import timedelta
from functools import partial

import broken_processes
import choosing_processes
import processes
import pytest
import torch
import vllm_processes
from accelerate import Accelerator
from pair import found_by_two

import forked
import tiny
from cagsr.distributed import process_group
from fake_vllm import FakeVLLM


@pytest.fixture(scope="module")
def by_two():
    return found_by_two(processes.run_all)


@pytest.mark.parametrize("name", sorted(processes.RUNS))
def test_trap_19_two_processes_write_the_same_groups_and_end_with_the_same_weights(name, by_two):
    alone, together = processes.run(name, Accelerator(cpu=True)), by_two[name]
    assert together["responses"] == alone["responses"]
    for row, expected in zip(together["rows"], alone["rows"], strict=True):
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-5)
    start, moved = tiny.weights_of(processes.make_policy(name)), 0.0
    for key, value in alone["weights"].items():
        torch.testing.assert_close(together["weights"][key], value, rtol=1e-5, atol=1e-5, msg=key)
        moved = max(moved, float((start[key] - value).abs().max()))
    assert moved > 1e-3


def test_every_process_has_the_reward_and_the_heads_that_the_main_one_chose():
    found = found_by_two(choosing_processes.chosen)
    assert found["asked"] == [True, False]
    assert found["presets"] == ["attention-values", "attention-values"]
    assert found["heads"][0] == found["heads"][1]
    assert found["read"][0] == found["read"][1]
    first, second = found["errors"]
    assert first == second
    assert "never differ in what they take up" in first


def test_when_one_process_is_in_trouble_all_stop_save_or_fail_together_and_go_on_to_the_same_bits(tmp_path):
    found = found_by_two(broken_processes.main, tmp_path)
    mine, theirs = sorted(found["full"], key=lambda message: "another process" in message)
    assert mine.startswith("StorageError: ")
    assert "No space left on device" in mine
    assert theirs.startswith("StorageError: ")
    assert "could not be written by another process. The earlier checkpoints are untouched." in theirs
    assert found["untouched"]
    assert len(set(found["stopped"])) == 1
    assert found["stopped"][0].startswith(
        "StoppedError: stopped by SIGTERM in step 1, after 3 optimizer steps"
    )
    assert found["kept"] == ["step-000000-update-0003"]
    both = {
        f"{name}-{rank}.{kind}"
        for rank in (0, 1)
        for name, kind in (("buffer", "json"), ("buffer", "safetensors"))
    }
    assert both | {"random_states_0.pkl", "random_states_1.pkl"} <= set(found["held"])
    for key, value in found["weights"].items():
        assert torch.equal(found["again"][key], value), key


def test_the_first_process_asks_a_vllm_server_for_all_and_every_process_gets_its_share():
    with FakeVLLM(tiny.make_model("llama", seed=5)) as server:
        server.spoil = lambda choices: len(server.asked) == 3 and choices.pop()
        found = found_by_two(vllm_processes.asked, server.url, server.group_port)
    assert found["clients"] == [True, False]
    prompts = [list(prompt.ids) for prompt in tiny.prompts(tiny.policy("llama"))]
    assert [asked.prompt for asked in server.asked] == [prompts] * 3
    assert found["tokens"] == server.answered[:2]
    assert len(server.received) == 3
    for received, weights in zip(server.received, found["weights"], strict=False):
        assert all(torch.equal(weight, weights[name]) for name, weight in received.items())
    for row in found["rows"]:
        assert row["importance"] == pytest.approx(1, abs=1e-4)
    assert len(found["errors"]) == 2
    assert len(set(found["errors"])) == 1
    assert "it gave 11 responses, asked for 12" in found["errors"][0]


def test_an_adapter_in_shards_is_gathered_for_the_server_whole(tmp_path):
    with FakeVLLM(tiny.make_model("llama")) as server:
        found = found_by_two(vllm_processes.adapter_in_shards, server.url, tmp_path)
    first, second = found["weights"]
    assert any(not torch.equal(first[name], second[name]) for name in first)
    for loaded, weights in zip(server.loaded, (first, second), strict=True):
        assert loaded.keys() == weights.keys()
        assert all(torch.equal(loaded[name], weight) for name, weight in weights.items())
    for row in found["rows"]:
        assert row["importance_max"] == pytest.approx(1, abs=1e-3)


KILLER = """
import os, signal
from pathlib import Path

def mine(evidence):
    struck = Path("struck")
    if os.environ["RANK"] == "1" and not struck.exists() and Path("run/checkpoints/step-000002").exists():
        struck.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return evidence.rollout.lengths.float()
"""


def test_a_process_that_is_killed_ends_all_of_them_and_the_run_goes_on(tmp_path):
    tiny.save_models(tmp_path)
    (tmp_path / "killer.py").write_text(KILLER)
    settings = "data.task=slots data.count=11 data.evaluation_count=3 train.steps=4 train.prompts_per_step=4 "
    settings += "train.micro_batch=6 train.save_every=1 sampling.candidates=3 sampling.max_new_tokens=7 "
    settings += "model.name=llama run.directory=run"
    command = ["train", *settings.split(), "reward.terms=[{signal: killer.mine}]"]
    torchrun = ["--nproc_per_node=2", "--standalone", "-m", "cagsr", *command]
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
    quiet = {"ACCELERATE_USE_CPU": "1", "HF_HUB_OFFLINE": "1"}
    launcher = partial(forked.module, "torch.distributed.run", torchrun)
    assert forked.start(launcher, tmp_path, {**paths, **quiet}).wait(240) != 0
    assert (tmp_path / "struck").exists()
    forked.wait_for_both(forked.start_two(partial(forked.cagsr, [*command, "--resume"]), tmp_path, quiet))
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    assert json.loads((tmp_path / "run/summary.json").read_text())["steps"] == 4


def test_a_process_waits_longer_for_the_others_than_the_ten_minutes_of_nccl(monkeypatch):
    given = {}
    monkeypatch.setattr(process_group, "Accelerator", lambda **settings: given.update(settings))
    process_group.accelerated(mixed_precision="no")
    (patience,) = given["kwargs_handlers"]
    assert patience.to_kwargs() == {"timeout": timedelta(hours=3)}
