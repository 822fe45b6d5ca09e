"""`model.load_in_4bit`: adapters on weights in four bits, and models whose weights are quantised on disk already."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, BitsAndBytesConfig, PretrainedConfig

from cagsr.config.schema import Sampling
from cagsr.errors import InputError, UnsupportedModelError
from cagsr.models import four_bits
from cagsr.models.load import load_model
from cagsr.models.load_policy import load_policy
from cagsr.models.policy import Policy
from cagsr.training import preflight

QLORA = ("model.load_in_4bit=true", "model.lora.r=2")
TOKENS = torch.tensor([[5, 17, 11, 23, 7]])


def nf4(computed: torch.dtype = torch.float32) -> BitsAndBytesConfig:
    return four_bits.four_bits("model", PretrainedConfig(), computed)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def quantised(models, tmp_path, request) -> Path:
    """The llama as others share such models: saved with its weights in four bits, and the rest in a type."""
    directory = shutil.copytree(models / "llama", tmp_path / "quantised")
    settings = {"quantization_config": nf4(request.param), "dtype": request.param}
    AutoModelForCausalLM.from_pretrained(directory, **settings).save_pretrained(directory)
    return directory


@pytest.mark.parametrize(("name", "kind"), [("llama", AutoModelForCausalLM), ("t5", AutoModelForSeq2SeqLM)])
def test_weights_are_those_of_transformers_own_loading_and_attention_is_read_exactly(models, name, kind):
    policy = load_policy(models / name, load_in_4bit=True)
    plain = kind.from_pretrained(models / name, quantization_config=nf4(), dtype=torch.float32)
    whole, _ = load_model(str(models / name))
    given = {"input_ids": TOKENS} | ({"decoder_input_ids": TOKENS} if name == "t5" else {})
    with torch.no_grad():
        found, expected, rounded = (model(**given).logits for model in (policy.model, plain, whole))
    assert torch.allclose(found, expected, atol=1e-5)
    assert (found - rounded).abs().max() > 1e-2
    assert any(weight.dtype == torch.uint8 for weight in policy.model.parameters())
    assert all(tried.problem is None for tried in policy.proof)
    # bitsandbytes' kernel for CPUs with AVX512-BF16 has no gradient.
    layers = [module for module in policy.model.modules() if hasattr(module, "support_avx512bf16_for_cpu")]
    assert layers
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)


@pytest.mark.parametrize("model", ["t5", "llama"])
def test_an_adapter_is_trained_saved_exported_and_a_run_goes_on_to_the_same_bits(cagsr, train, model):
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
    card = Path("run/model/README.md").read_text()
    assert "base that it needs, which was quantised while it was trained, is in" in card
    saved = load_file("run/checkpoints/step-000002/model.safetensors")
    assert all(".lora_" in name for name in saved)
    assert "bitsandbytes" in json.loads(Path("run/run.json").read_text())["identity"]
    # Onto the whole base, from the model and from the checkpoint alike.
    assert cagsr("export", "run", "from-model").code == 0
    assert cagsr("export", "run/checkpoints/step-000002", "from-checkpoint").code == 0
    one, other = (load_file(f"{name}/model.safetensors") for name in ("from-model", "from-checkpoint"))
    assert all(torch.allclose(weight, other[name], atol=1e-6) for name, weight in one.items())


def test_a_model_that_is_quantised_already_takes_an_adapter_and_is_merged_with_it_as_it_was_trained(
    cagsr, train, quantised
):
    outcome = train("model.lora.r=2", "train.learning_rate=0.1", model=quantised)
    assert outcome.code == 0, outcome.err
    base = AutoModelForCausalLM.from_pretrained(quantised)
    exact = base.dtype == torch.float32
    adapted = PeftModel.from_pretrained(base, "run/model")
    for command in (["export", "run", "whole"], ["export", quantised, "base"]):
        assert cagsr(*command).code == 0
    merged, plain = (AutoModelForCausalLM.from_pretrained(name) for name in ("whole", "base"))
    assert getattr(merged.config, "quantization_config", None) is None
    with torch.no_grad():
        assert torch.allclose(
            merged(TOKENS).logits, adapted(TOKENS).logits.float(), atol=1e-4 if exact else 0.5
        )
        with adapted.disable_adapter():
            assert torch.allclose(
                plain(TOKENS).logits, adapted(TOKENS).logits.float(), atol=1e-4 if exact else 0.5
            )
        assert not torch.allclose(merged(TOKENS).logits, plain(TOKENS).logits, atol=1e-2)
    refused = cagsr("export", "run/checkpoints/step-000002", "out")
    assert refused.code == 2
    assert "stands on quantised weights; name the run's model/ or best/" in " ".join(refused.err.split())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "model: its weights are quantised and cannot be trained; train an adapter with lora"),
        (["model.lora.r=2", "sampling.dtype=bfloat16"], "sampling.dtype: not with a model whose weights are"),
        (QLORA, "quantised is quantised already; leave it out"),
    ],
)
def test_what_quantised_weights_cannot_is_refused_before_anything_is_trained(
    train, quantised, given, message
):
    outcome = train(*given, model=quantised)
    assert outcome.code == 2
    assert message in " ".join(outcome.err.split())
    assert not Path("run/metrics.jsonl").exists()


def test_supervised_training_of_quantised_weights_is_refused_too(cagsr, quantised):
    outcome = cagsr("sft", "data.task=slots", f"model.name={quantised}", "sft.steps=1")
    assert outcome.code == 2
    assert "model: its weights are quantised and cannot be trained" in " ".join(outcome.err.split())


def refused_by_preflight(policy: Policy, sampling: Sampling, sharded: bool, monkeypatch) -> str:
    monkeypatch.setattr(preflight, "asked_to_shard", lambda accelerator: sharded)
    with pytest.raises(InputError) as refused:
        preflight.refuse_quantised(policy, sampling, Accelerator(cpu=True))
    return str(refused.value)


def test_shards_servers_and_adapters_that_only_merging_could_save_are_refused(models, monkeypatch):
    policy = load_policy(models / "llama", load_in_4bit=True, lora={"r": 2})
    preflight.refuse_quantised(policy, Sampling(), Accelerator(cpu=True))
    assert refused_by_preflight(policy, Sampling(), True, monkeypatch).startswith("FSDP: not with quantised")
    assert "sampling.engine: vllm" in refused_by_preflight(
        policy, Sampling(engine="vllm"), False, monkeypatch
    )
    base = AutoModelForCausalLM.from_pretrained(models / "llama", quantization_config=nf4())
    mine = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]), adapter_name="mine")
    said = refused_by_preflight(load_policy(mine, policy.tokenizer), Sampling(), False, monkeypatch)
    assert "this one cannot be" in said


def test_a_loaded_model_is_not_loaded_again_in_four_bits(models):
    from cagsr import Trainer, TrainingConfig

    model = AutoModelForCausalLM.from_pretrained(models / "llama")
    args = TrainingConfig(output_dir="run", model={"load_in_4bit": True, "lora": {"r": 2}})
    with pytest.raises(InputError, match=r"model\.load_in_4bit is for a model that is loaded by name"):
        Trainer(model=model, args=args, train_dataset=[{"prompt": "city lyon"}])


def test_quantisation_that_cannot_be_undone_is_named(models):
    model, _ = load_model(str(models / "llama"), load_in_4bit=True)

    def dequantize(dtype: object = None):
        raise NotImplementedError

    model.dequantize = dequantize
    with pytest.raises(UnsupportedModelError, match="cannot be undone"):
        four_bits.in_floats(model, torch.float32)


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
