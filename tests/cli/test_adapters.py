"""What training on an adapter saves: it loads anywhere to what was trained, or says why it does not."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from cagsr.config import Config
from cagsr.models.load_policy import load_policy
from cagsr.training.trainer import train as train_by_config

IDS = torch.tensor([[3, 5, 7, 11, 13, 17, 19, 23]])


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def close(one, other):
    """Merging rounds in another order than an adapter beside the weights does."""
    torch.testing.assert_close(one, other, rtol=0, atol=2e-5)


@pytest.fixture
def adapt(cagsr, small, tmp_path):
    """``adapt("train", base, "q1")``: trains an adapter of rank 2 in ``q1``; of `train`, gives the logits in memory."""

    def run(kind: str, base: Path | str, into: str, *more: str):
        place = f"{'sft' if kind == 'sft' else 'run'}.directory={into}"
        much = ["train.learning_rate=0.05", "model.lora={r: 2}"]
        much += ["sft.learning_rate=0.05", "sft.steps=2", "sft.max_reference_tokens=11"]
        settings = [*small, "data.task=slots", f"model.name={base}", place, *much, *more]
        if kind == "sft":
            assert cagsr("sft", *settings).code == 0
            return None
        policy = train_by_config(Config.load(None, settings)).policy
        assert policy is not None
        return logits(policy.model)

    return run


@pytest.mark.parametrize("first", ["sft", "train"])
def test_lora_on_lora_loads_to_what_was_trained(adapt, models, first, monkeypatch, tmp_path, capsys):
    adapt(first, models / "llama", "q1")
    capsys.readouterr()
    expected = adapt("train", "q1/model", "q2")
    told = " ".join(capsys.readouterr().out.split())
    base = logits(load_policy(models / "llama").model)
    before = logits(load_policy("q1/model").model)
    assert (expected - before).abs().max() > 0.1
    assert (before - base).abs().max() > 0.1
    close(logits(load_policy("q2/model").model), expected)
    close(logits(AutoModelForCausalLM.from_pretrained("q2/model")), expected)
    # It stands on nothing but itself.
    shutil.move("q2/model", tmp_path / "elsewhere")
    shutil.rmtree("q1")
    monkeypatch.chdir("/")
    close(logits(load_policy(tmp_path / "elsewhere").model), expected)
    assert "model/ will be the whole model, with the LoRA adapter merged in" in told
    assert (
        "the whole model, with the LoRA adapter merged in" in (tmp_path / "elsewhere/README.md").read_text()
    )


def test_lora_on_lora_on_lora_loads_too_and_evaluates_as_itself(adapt, cagsr, small, models):
    adapt("sft", models / "llama", "q1")
    adapt("train", "q1/model", "q2")
    expected = adapt("train", "q2/model", "q3")
    close(logits(load_policy("q3/model").model), expected)
    once = cagsr("eval", "q2=q2/model", "q3=q3/model", *small, "data.task=slots", "--json")
    assert once.code == 0, once.err


def test_an_adapter_names_its_base_absolutely_with_a_digest_and_loads_from_any_directory(
    adapt, cagsr, small, models, monkeypatch, tmp_path
):
    shutil.copytree(models / "llama", tmp_path / "base")
    expected = adapt("train", "base", "q1")
    named = json.loads(Path("q1/model/adapter_config.json").read_text())
    assert named["base_model_name_or_path"] == str(tmp_path / "base")
    record = json.loads(Path("q1/model/base.json").read_text())
    assert len(record["sha256"]) == 64
    monkeypatch.chdir("/")
    close(logits(load_policy(tmp_path / "q1/model").model), expected)
    close(logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "q1/model")), expected)
    # Base and adapter moved together.
    (tmp_path / "moved").mkdir()
    for name in ("base", "q1"):
        shutil.move(tmp_path / name, tmp_path / "moved" / name)
    close(logits(load_policy(tmp_path / "moved/q1/model").model), expected)
    # The adapter alone.
    shutil.move(tmp_path / "moved/q1", tmp_path / "q1")
    refused = cagsr("eval", f"mine={tmp_path / 'q1/model'}", *small, "data.task=slots")
    assert refused.code == 2
    assert f"the base of the LoRA adapter {tmp_path / 'q1/model'} is missing" in " ".join(refused.err.split())


def test_a_base_that_has_changed_is_refused_with_both_digests(adapt, cagsr, small, models, tmp_path):
    shutil.copytree(models / "llama", tmp_path / "base")
    adapt("train", "base", "q1")
    weights = load_file("base/model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, "base/model.safetensors", metadata={"format": "pt"})
    refused = cagsr("eval", "mine=q1/model", *small, "data.task=slots")
    said = " ".join(refused.err.split())
    record = json.loads(Path("q1/model/base.json").read_text())
    assert refused.code == 2
    assert "is not the base that the LoRA adapter q1/model was trained on" in said
    assert f"{record['sha256'][:12]}..." in said
    os.remove("q1/model/base.json")
    assert load_policy("q1/model").model is not None


def test_records_name_the_base_of_an_adapter_by_its_digest(adapt, cagsr, small, models):
    adapt("train", models / "llama", "q1")
    base = json.loads(Path("q1/model/base.json").read_text())["sha256"]
    said = ["data.task=slots", *small, "--json"]
    evaluated = json.loads(cagsr("eval", f"base={models / 'llama'}", "mine=q1/model", *said).out)
    assert evaluated["models"]["base"] == {"name": str(models / "llama"), "sha256": base}
    assert evaluated["models"]["mine"]["base"]["sha256"] == base
    probed = json.loads(cagsr("probe", "model.name=q1/model", "--prompts=3", *said).out)
    assert probed["weights"]["base"]["sha256"] == base
    adapt("train", "q1/model", "q2")
    assert json.loads(Path("q2/run.json").read_text())["identity"]["base of the adapter"] == base
