"""What can be scored and evaluated but not trained is refused before a model is loaded."""

import pytest
import torch

import tiny
from cagsr.config import Config
from cagsr.config.schema import AlgorithmSettings
from cagsr.errors import InputError
from cagsr.models.load import load_model, make_policy
from cagsr.models.lora import with_lora
from cagsr.rewards.presets import build_reward
from cagsr.training.algorithms import Algorithm
from cagsr.training.preflight import check_training

PPO = ["algorithm.name=ppo", "sampling.candidates=1"]


def check(*overrides):
    config = Config.load(None, ["data.task=slots", *overrides])
    check_training(config, build_reward(config.reward, None))


def test_a_preset_that_compares_candidates_needs_two_of_them():
    check("algorithm.name=ppo", "sampling.candidates=2")
    check(*PPO, "reward.preset=lexical")
    with pytest.raises(
        InputError, match=r"standardise: group of coverage, surprise compares .* there is one"
    ):
        check(*PPO, "reward.preset=coverage")


def test_a_term_that_compares_the_batch_needs_two_responses_in_it():
    batch = "reward.terms=[{signal: length, standardise: batch}]"
    check(*PPO, batch, "train.prompts_per_step=2")
    with pytest.raises(InputError, match="standardise: batch of length compares"):
        check(*PPO, batch, "train.prompts_per_step=1")


def test_weights_in_bfloat16_are_not_trained_but_an_adapter_on_them_is():
    check("model.dtype=bfloat16", "model.lora={r: 2}")
    with pytest.raises(InputError, match=r"model\.dtype: bfloat16 .* train\.mixed_precision: bf16"):
        check("model.dtype=bfloat16")
    with pytest.raises(InputError, match=r"model\.dtype: bfloat16"):
        check_training(Config.load(None, ["data.task=slots", "model.dtype=bfloat16"]))


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_an_adapter_on_bfloat16_weights_is_float32_and_learns(name, tmp_path):
    plain = tiny.policy(name, extra_eos=20)
    plain.model.save_pretrained(tmp_path / "model")
    plain.tokenizer.save_pretrained(tmp_path / "model")
    model, dropout = load_model(str(tmp_path / "model"), dtype="bfloat16")
    policy = make_policy(model, plain.tokenizer, critic=True, dropout=dropout)
    with_lora(policy, r=3, alpha=7, target_modules={"t5": ["q", "v"]}.get(name, ["q_proj", "v_proj"]))
    trained = {key: value for key, value in policy.named_parameters() if value.requires_grad}
    assert {value.dtype for value in trained.values()} == {torch.float32}
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16
    before = {key: value.detach().clone() for key, value in trained.items()}
    step = tiny.make_step(
        policy, learning_rate=1e-5, algorithm=Algorithm(AlgorithmSettings(name="ppo", kl_placement="reward"))
    )
    step.update(step.collect(tiny.prompts(policy), seed=3).batches)
    # An update of 1e-5 on weights of this size is nothing in bfloat16.
    assert sum(not torch.equal(value, before[key]) for key, value in trained.items()) > len(trained) / 3


def test_the_weights_of_an_adapter_are_never_read_from_a_pickle_file(tmp_path):
    policy = tiny.policy("llama")
    policy.model.save_pretrained(tmp_path / "base")
    policy.model.name_or_path = str(tmp_path / "base")
    with_lora(policy, r=2, alpha=2, target_modules=["q_proj"])
    policy.model.save_pretrained(tmp_path / "adapter")
    load_model(str(tmp_path / "adapter"))
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    weights.unlink()
    torch.save({}, tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(
        InputError, match=r"adapter has no adapter_model\.safetensors; .* never read from pickle"
    ):
        load_model(str(tmp_path / "adapter"))
