"""`model.load_in_4bit`: adapters on weights in four bits, and models whose weights are quantised on disk already."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from cagsr.errors import InputError
from cagsr.models.four_bits import four_bits
from cagsr.models.load import load_model
from cagsr.models.load_policy import load_policy

pytest.importorskip("bitsandbytes")

QLORA = ("model.load_in_4bit=true", "model.lora.r=2")


@pytest.fixture
def quantised(models, tmp_path) -> Path:
    """The llama as others share such models: saved with its weights in four bits."""
    directory = shutil.copytree(models / "llama", tmp_path / "quantised")
    model = AutoModelForCausalLM.from_pretrained(directory, quantization_config=four_bits(torch.float32))
    model.save_pretrained(directory)
    return directory


def test_weights_are_those_of_transformers_own_loading_and_attention_is_read_exactly(models):
    policy = load_policy(models / "llama", load_in_4bit=True)
    plain = AutoModelForCausalLM.from_pretrained(
        models / "llama", quantization_config=four_bits(torch.float32), dtype=torch.float32
    )
    whole, _ = load_model(str(models / "llama"))
    tokens = torch.tensor([[5, 17, 11, 23, 7]])
    with torch.no_grad():
        found, expected, rounded = (model(tokens).logits for model in (policy.model, plain, whole))
    assert torch.allclose(found, expected, atol=1e-5)
    assert (found - rounded).abs().max() > 1e-2
    assert policy.model.model.layers[0].self_attn.q_proj.weight.dtype == torch.uint8
    assert all(tried.problem is None for tried in policy.proof)


@pytest.mark.parametrize("model", ["t5", "llama"])
def test_an_adapter_is_trained_and_a_run_goes_on_to_the_same_bits(train, model):
    settings = [*QLORA, "train.learning_rate=0.01", "train.save_every=1"]
    for outcome in (
        train(*settings, "run.directory=whole", model=model),
        train(*settings, "train.steps=1", model=model),
        train(*settings, "--resume", "--accept-changes", model=model),
    ):
        assert outcome.code == 0, outcome.err
    whole, resumed = (load_file(f"{name}/model/adapter_model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())
    assert any(weight.any() for name, weight in whole.items() if ".lora_B." in name)
    assert "base that it needs, which was quantised while it was trained, is in" in (
        Path("run/model/README.md").read_text()
    )
    load_model("run/model")  # onto the whole base


def test_a_model_that_is_quantised_already_takes_an_adapter_and_is_merged_with_it_as_it_was_trained(
    train, quantised
):
    outcome = train("model.lora.r=2", "train.learning_rate=0.1", model=quantised)
    assert outcome.code == 0, outcome.err
    merged, _ = load_model("run/model")
    base = AutoModelForCausalLM.from_pretrained(quantised, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, "run/model")
    tokens = torch.tensor([[5, 17, 11, 23, 7]])
    with torch.no_grad():
        assert torch.allclose(merged(tokens).logits, adapted(tokens).logits, atol=1e-4)
        with adapted.disable_adapter():
            assert not torch.allclose(merged(tokens).logits, adapted(tokens).logits, atol=1e-2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "model: its weights are quantised and cannot be trained; train an adapter with lora"),
        (["model.lora.r=2", "sampling.dtype=bfloat16"], "sampling.dtype: the model's weights are quantised"),
    ],
)
def test_what_quantised_weights_cannot_is_refused_before_anything_is_trained(
    train, quantised, given, message
):
    outcome = train(*given, model=quantised)
    assert outcome.code == 2
    assert message in " ".join(outcome.err.split())
    assert not Path("run/metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["model.load_in_4bit=true"], "weights in four bits cannot be trained. Train an adapter on them"),
        ([*QLORA, "sampling.dtype=bfloat16"], "model.load_in_4bit: sampling.dtype merges the adapter"),
        ([*QLORA, "sampling.engine=vllm"], "model.load_in_4bit: sampling.engine vllm writes with weights"),
    ],
)
def test_settings_that_exclude_each_other_are_refused_before_a_model_loads(train, given, message):
    outcome = train(*given, model=Path("nowhere"))
    assert outcome.code == 2
    assert message in " ".join(outcome.err.split())


def test_a_comparison_has_one_base_for_all(cagsr, small):
    outcome = cagsr("compare", *small, "data.task=slots", *QLORA)
    assert outcome.code == 2
    assert "model.load_in_4bit: adapters are compared on the whole base" in " ".join(outcome.err.split())


def test_an_adapter_is_not_merged_into_four_bits(train):
    assert train("model.lora.r=2", "train.steps=1").code == 0
    with pytest.raises(InputError, match=r"model\.load_in_4bit: run/model is a LoRA adapter"):
        load_policy("run/model", load_in_4bit=True)


def test_without_bitsandbytes_it_is_named(models, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(InputError, match="needs bitsandbytes: pip install bitsandbytes"):
        load_policy(models / "llama", load_in_4bit=True)
