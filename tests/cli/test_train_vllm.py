"""`cagsr train` with a vLLM server that writes the responses: to the end, and when the server is not there."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import tiny
from fake_vllm import FakeVLLM, instead_of_nccl


@pytest.fixture(autouse=True)
def _without_nccl():
    with instead_of_nccl():
        yield


@pytest.fixture
def server():
    with FakeVLLM(tiny.make_model("llama", hidden=16, heads=2)) as server:
        yield server


def steps():
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


def holds(received, file, prefix):
    """Whether all weights that a server got are those in a file, to the bit."""
    kept = load_file(file)
    return all(torch.equal(weight, kept[f"{prefix}{name}"]) for name, weight in received.items())


def test_a_run_trains_on_the_servers_responses_to_its_end(train, server, models):
    outcome = train(*server.settings, "train.learning_rate=0.01", "train.save_every=1", model="llama")
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    assert f"responses come from vLLM at {server.url}" in outcome.out
    assert [row["step"] for row in steps()] == [1, 2]
    for row in steps():
        assert row["importance"] == pytest.approx(1, abs=1e-3)
        assert abs(row["mismatch"]) < 1e-3
        assert row["importance_max"] >= row["importance"]
    assert len(server.received) == len(server.asked) == 2
    assert [(asked.n, len(asked.prompt), asked.max_tokens) for asked in server.asked] == [(3, 2, 7)] * 2
    assert holds(server.received[0], models / "llama/model.safetensors", "")
    assert holds(server.received[1], "run/checkpoints/step-000001/model.safetensors", "model.")
    assert not holds(server.received[1], models / "llama/model.safetensors", "")
    written = [json.loads(line) for line in Path("run/candidates.jsonl").read_text().splitlines()]
    assert len(written) == 12


def test_ppo_with_several_updates_a_rollout_trains_too(train, server):
    settings = ["algorithm.name=ppo", "algorithm.epochs=2"]
    outcome = train(*server.settings, *settings, model="llama")
    assert outcome.code == 0, outcome.err
    assert [row["step"] for row in steps()] == [1, 2]
    assert len(server.received) == 2


LORA = ["model.lora.r=2", "train.learning_rate=0.01", "train.save_every=1"]


@pytest.fixture
def base(models):
    """A server of the model that is trained, as one needs to be that gets adapters alone."""
    with FakeVLLM(AutoModelForCausalLM.from_pretrained(models / "llama")) as server:
        server.name = str(models / "llama")
        yield server


def test_an_adapter_goes_to_the_server_as_files_and_comes_back_as_a_model(train, base):
    outcome = train(*base.settings, *LORA, model="llama")
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    assert base.received == []
    assert [row["step"] for row in steps()] == [1, 2]
    assert all(row["importance_max"] == pytest.approx(1, abs=1e-3) for row in steps())
    kept = load_file("run/checkpoints/step-000001/model.safetensors")
    sent = base.loaded[1]
    assert len(sent) == 28
    for name, weight in sent.items():
        assert torch.equal(weight, kept[f"model.{name.removesuffix('.weight')}.default.weight"]), name
    assert not any(torch.equal(base.loaded[0][name], sent[name]) for name in sent if "lora_B" in name)
    assert not Path("run/adapter-for-vllm").exists()
    assert base.adapters == {}


def test_with_an_adapter_a_server_that_dies_ends_the_run_with_69_and_another_takes_it_on(train, base, models):
    base.before = lambda route: len(base.loaded) == 2 and base.refuse_connections()
    settings = [*LORA, "sampling.vllm.timeout=2"]
    outcome = train(*base.settings, *settings, model="llama")
    assert outcome.code == 69
    assert outcome.err.startswith(f"error: sampling.vllm: {base.url} does not answer (")
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve" in " ".join(outcome.err.split())
    assert [row["step"] for row in steps()] == [1]
    with FakeVLLM(AutoModelForCausalLM.from_pretrained(models / "llama")) as other:
        again = train(*other.settings, *settings, "--resume", model="llama")
    assert again.code == 0, again.err
    assert [row["step"] for row in steps()] == [1, 2]
    assert len(other.loaded) == 1
    assert other.loaded[0].keys() == base.loaded[1].keys()
    assert all(torch.equal(weight, base.loaded[1][name]) for name, weight in other.loaded[0].items())


def test_a_server_of_another_model_is_refused_before_the_model_is_loaded(train, base, models, tmp_path):
    other = shutil.copytree(models / "llama", tmp_path / "other")
    (other / "model.safetensors").write_bytes(b"no weights")
    outcome = train(*base.settings, *LORA, model=other)
    assert outcome.code == 69
    said = " ".join(outcome.err.split())
    assert f"serves {models / 'llama'}, which is not the model that is trained, {other}." in said
    assert base.loaded == []


def test_prompts_that_are_too_long_for_the_server_are_refused_before_the_run(train, base):
    base.context = 20
    outcome = train(*base.settings, *LORA, model="llama")
    assert outcome.code == 2
    assert "started with --max-model-len 20" in " ".join(outcome.err.split())
    assert not Path("run/run.json").exists()


def test_a_server_that_dies_ends_the_run_with_69_and_the_run_goes_on_with_another(train, server):
    def dead(route):
        if len(server.received) == 1 and route == "/start_weight_update":
            raise ConnectionResetError

    server.before = dead
    settings = ["train.learning_rate=0.01", "train.save_every=1"]
    outcome = train(*server.settings, *settings, model="llama")
    assert outcome.code == 69
    assert outcome.err.startswith(f"error: sampling.vllm: {server.url} does not answer (ConnectionError: ")
    assert "Start it, as VLLM_SERVER_DEV_MODE=1 vllm serve MODEL" in outcome.err
    assert "Traceback" not in outcome.err
    assert [row["step"] for row in steps()] == [1]
    with FakeVLLM(tiny.make_model("llama", hidden=16, heads=2, seed=3)) as other:
        again = train(*other.settings, *settings, "--resume", model="llama")
    assert again.code == 0, again.err
    assert [row["step"] for row in steps()] == [1, 2]
    assert len(other.received) == 1
    assert holds(other.received[0], "run/checkpoints/step-000001/model.safetensors", "model.")


def test_a_server_that_is_not_there_is_said_before_the_model_is_loaded(train, server, models, tmp_path):
    server.die()
    broken = shutil.copytree(models / "llama", tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"no weights")
    outcome = train(*server.settings, "sampling.vllm.timeout=0.01", model=broken)
    assert outcome.code == 69
    assert f"{server.url} does not answer" in outcome.err
    assert "at most" in " ".join(outcome.out.split())
    assert not Path("run/run.json").exists()


@pytest.mark.parametrize("kind", ["a model", "an adapter of one"])
def test_an_encoder_decoder_is_refused_before_the_model_is_loaded_and_the_server_asked(
    train, server, models, tmp_path, kind
):
    name = shutil.copytree(models / "t5", tmp_path / "named")
    (name / "model.safetensors").write_bytes(b"no weights")
    if kind == "an adapter of one":
        LoraConfig(base_model_name_or_path=str(name)).save_pretrained(tmp_path / "adapter")
        name = tmp_path / "adapter"
    outcome = train(*server.settings, model=name)
    assert outcome.code == 2
    assert f"sampling.engine: vllm writes with causal models only, and {name} is an encoder" in outcome.err
    assert server.calls == []
