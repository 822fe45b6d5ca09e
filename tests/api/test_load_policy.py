"""A policy from a name or from somebody's model: the same numbers, nothing random, and the model stays usable."""

import json

import peft
import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
)
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import tiny
from cagsr.attention.naive import eager_weights, naive_attention
from cagsr.errors import InputError, UnsupportedModelError
from cagsr.models.load import save_model
from cagsr.models.load_policy import load_policy
from cagsr.models.observing import frozen_policy, observing
from cagsr.models.policy import Policy
from cagsr.models.reference import Reference

RESPONSES = ["city lyon", "tea", "", "monday afternoon"]


def rollout_of(policy: Policy):
    return policy.given(tiny.prompts(policy, (3, 7)), RESPONSES, 9)


def adapted(model, **settings):
    """The model with a LoRA adapter that changes what it says."""
    torch.manual_seed(0)
    config = peft.LoraConfig(r=3, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **settings)
    found = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    return found


@pytest.mark.parametrize("attention", ["sdpa", "eager", "cagsr"])
@pytest.mark.parametrize("name", ["t5", "llama"])
def test_a_loaded_model_observes_as_the_name_does_whatever_its_attention_and_mode(
    models, load, name, attention
):
    model = load(name, attn_implementation=attention).train()
    policy, named = load_policy(model), load_policy(models / name)
    rollout = rollout_of(named)
    assert torch.equal(policy.observe(rollout).attention, named.observe(rollout).attention)
    assert torch.equal(policy.logprobs(rollout), named.logprobs(rollout))
    assert policy.tokenizer.get_vocab() == named.tokenizer.get_vocab()
    assert (model.config._attn_implementation, model.training) == ("cagsr", False)


def test_settings_are_those_of_the_policy(models):
    policy = load_policy(models / "llama", layers="last", temperature=0.5, critic=True)
    assert (policy.readable.layers, policy.temperature) == ((1,), 0.5)
    assert policy.value_head is not None
    assert load_policy(models / "llama", dtype="bfloat16").model.dtype == torch.bfloat16


def dropping(load):
    return load("t5", dropout_rate=0.31), "dropout_rate", 0.31


def dropping_attention(load):
    return load("llama", attention_dropout=0.37), "attention_dropout", 0.37


@pytest.mark.parametrize("made", [dropping, dropping_attention])
def test_dropout_is_off_in_training_mode_too_and_is_saved_as_it_was(load, tmp_path, made):
    model, key, rate = made(load)
    policy = load_policy(model)
    rollout = rollout_of(policy)
    before = policy(rollout).logprobs
    policy.train()
    assert torch.equal(policy(rollout).logprobs, before)
    assert policy.dropout == {key: rate}
    save_model(policy, tmp_path / "saved")
    assert getattr(AutoConfig.from_pretrained(tmp_path / "saved"), key) == rate


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.6}, {"length_penalty": 2.0, "early_stopping": True}, {"pad_token_id": -1}]
)
@pytest.mark.parametrize("lora", [None, {"r": 2}])
def test_what_transformers_would_ignore_of_a_generation_config_costs_no_weights(
    load, tmp_path, settings, lora
):
    model = load("llama")
    model.generation_config.update(**settings)
    policy = load_policy(model, lora=lora)
    save_model(policy, tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert written | settings == written
    assert policy.model.generation_config.to_dict() | settings == policy.model.generation_config.to_dict()
    rollout = rollout_of(policy)
    assert torch.equal(load_policy(tmp_path / "saved").logprobs(rollout), policy.logprobs(rollout))


@pytest.mark.parametrize(
    ("part", "setting", "value"),
    [("generation_config", "max_new_tokens", 0), ("config", "num_beams", 4)],
)
def test_a_config_that_cannot_be_saved_is_refused_before_training(load, part, setting, value):
    model = load("llama")
    setattr(getattr(model, part), setting, value)
    with pytest.raises(InputError, match=f"model: its config could not be saved after training: .*{setting}"):
        load_policy(model)


def test_dropout_of_inner_configs_and_of_adapters_is_off(load):
    words = tiny._tokenizer("encoder-decoder")
    shape = {"vocab_size": len(words), "hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 5}
    shape |= {"intermediate_size": 24, "max_position_embeddings": 64}
    config = EncoderDecoderConfig.from_encoder_decoder_configs(BertConfig(**shape), BertConfig(**shape))
    config.decoder_start_token_id = config.pad_token_id = words.pad_token_id
    torch.manual_seed(0)
    bert2bert = EncoderDecoderModel(config)
    bert2bert.generation_config.decoder_start_token_id = words.pad_token_id
    for policy in (load_policy(bert2bert, words), load_policy(adapted(load("llama"), lora_dropout=0.3))):
        rollout = rollout_of(policy)
        before = policy.logprobs(rollout)
        policy.train()
        assert torch.equal(policy.logprobs(rollout), before)


class Noisy(LlamaDecoderLayer):
    """A layer that is random while it trains, by a number that is called nothing in particular."""

    def forward(self, hidden, *given, **named):
        hidden = super().forward(hidden, *given, **named)
        return hidden + torch.randn_like(hidden) * 0.1 * self.training


def test_what_stays_random_in_training_mode_is_refused_and_keeps_its_attention(load):
    model = load("llama", attn_implementation="eager")
    model.model.layers[1].__class__ = Noisy
    with pytest.raises(UnsupportedModelError, match="computes something random in training mode"):
        load_policy(model)
    assert model.config._attn_implementation == "eager"
    with observing(model) as policy:  # it need not be trained to be observed
        assert policy.readable.layers == (0, 1)


def test_an_adapter_is_trained_and_observed_and_the_reference_stays_as_it_was(models, load):
    model = adapted(load("llama"))
    policy, base = load_policy(model), load_policy(models / "llama")
    rollout = rollout_of(policy)
    seen = policy.observe(rollout).attention
    eager = load("llama", attn_implementation="eager")
    eager.load_state_dict(adapted(load("llama")).merge_and_unload().state_dict())
    ids = torch.tensor([[*rollout.prompts[0].ids, *rollout.response_ids[0, :3].tolist()]])
    expected = naive_attention(eager_weights(eager, input_ids=ids), slice(2, 5), slice(0, 3))
    assert torch.allclose(seen[0, :3, -3:], expected[0], atol=1e-5)
    reference = Reference(policy)
    assert torch.equal(reference.observe(rollout).attention, seen)
    assert (seen - base.observe(rollout).attention).abs().max() > 0.01
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name for name in trained)
    assert len(trained) == 8
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1 + 2.0 * parameter.requires_grad)
    assert torch.equal(reference.observe(rollout).attention, seen)
    assert not torch.equal(policy.observe(rollout).attention, seen)


def test_of_a_new_adapter_the_reference_is_the_base_and_no_copy(models):
    policy, base = load_policy(models / "llama", lora={"r": 3}), load_policy(models / "llama")
    rollout, reference = rollout_of(policy), Reference(policy)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.5 * parameter.requires_grad)
    assert reference.copy is None
    assert torch.equal(reference.logprobs(rollout), base.logprobs(rollout))
    assert not torch.equal(policy.logprobs(rollout), base.logprobs(rollout))


def test_a_lora_section_or_a_mapping_puts_an_adapter_on(models):
    policy = load_policy(models / "llama", lora={"r": 3, "alpha": 5, "target_modules": ["q_proj"]})
    adapter = policy.model.peft_config["default"]  # type: ignore[index]
    assert (adapter.r, adapter.lora_alpha, adapter.target_modules) == (3, 5, {"q_proj"})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda load: nn.Linear(2, 3),
            r"model: expected a name, a transformers PreTrainedModel .* got Linear",
        ),
        (lambda load: nn.DataParallel(load("llama")), r"got DataParallel; unwrap it first"),
        (
            lambda load: peft.get_peft_model(
                load("llama"), peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
            ),
            r"model: its adapter \(.*PROMPT_TUNING\) writes virtual tokens",
        ),
    ],
)
def test_what_is_no_model_to_read_is_refused(load, make, message):
    with pytest.raises(InputError, match=message):
        load_policy(make(load))


def test_a_model_over_several_devices_is_refused(load):
    model = load("llama")
    model.hf_device_map = {"model.layers.0": 0, "model.layers.1": "cpu"}
    with pytest.raises(UnsupportedModelError, match="spread over several devices"):
        load_policy(model)


def test_a_model_without_attention_is_refused_and_left_as_it_was():
    config = AutoConfig.for_model("mamba", vocab_size=127, hidden_size=24, num_hidden_layers=2, state_size=5)
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config.eos_token_id = 1
    before = model.config._attn_implementation
    with pytest.raises(UnsupportedModelError):
        load_policy(model, tiny._tokenizer("causal"))
    assert model.config._attn_implementation == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora": {"r": 0}}, r"^lora\.r: "),
        ({"lora": {"rank": 3}}, r"^lora\.rank: .*; expected r, alpha and target_modules, or path"),
        (
            {"lora": {"path": "a", "alpha": 5}},
            r"^lora\.alpha: the adapter at lora\.path has settings of its own",
        ),
        ({"layers": "first"}, r"layers must be all, last"),
        ({"layers": [7]}, r"no readable attention in layers \[7\]"),
    ],
)
def test_settings_that_cannot_be_are_named(models, settings, message):
    with pytest.raises(InputError, match=message):
        load_policy(models / "llama", **settings)


def test_a_second_adapter_a_processor_and_a_model_from_nowhere_are_refused(load):
    with pytest.raises(InputError, match="lora: the model is a PEFT model already"):
        load_policy(adapted(load("llama")), lora={"r": 3})

    class Processor:
        tokenizer = None

    with pytest.raises(InputError, match=r"processing_class: expected a tokenizer, got Processor"):
        load_policy(load("llama"), Processor())  # type: ignore[arg-type]
    model = load("llama")
    model.config.name_or_path = ""
    with pytest.raises(InputError, match="processing_class: the model does not say where it was loaded from"):
        load_policy(model)


def state_of(model: nn.Module):
    """All that `observing` promises to put back, and what it never touches."""
    base = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    modes = [module.training for module in model.modules()]
    rates = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    gradients = [parameter.requires_grad for parameter in model.parameters()]
    return base.config._attn_implementation, base.config.to_dict(), modes, rates, gradients


@pytest.mark.parametrize("raises", [False, True])
def test_an_observed_model_is_as_it_was_also_after_an_error(load, raises):
    for model in (
        load("t5", attn_implementation="eager", dropout_rate=0.3).train(),
        adapted(load("llama", attn_implementation="sdpa"), lora_dropout=0.2).train(),
    ):
        before = state_of(model)
        try:
            with observing(model) as policy:
                assert not any(module.training for module in model.modules())
                assert policy.observe(rollout_of(policy)).attention.max() > 0
                if raises:
                    raise KeyError
        except KeyError:
            pass
        assert state_of(model) == before


def test_a_policy_is_used_as_it_is(models):
    policy = load_policy(models / "llama", layers="last")
    with observing(policy, policy.tokenizer) as same:
        assert same is policy
    for given in ({"layers": "last"}, {"temperature": 0.5}, {"processing_class": tiny._tokenizer("causal")}):
        with pytest.raises(InputError, match="a Policy has a tokenizer, layers and a temperature of its own"):
            observing(policy, **given).__enter__()


def covered(model):
    """The model with a ``forward`` on the instance that calls the model itself, as TRL's trainers leave it."""
    original = model.forward
    model.forward = lambda *given, **settings: original(*given, **settings)
    return model


def test_a_copy_of_a_model_whose_forward_is_covered_runs_itself(load):
    model = covered(load("llama"))
    frozen, policy = frozen_policy(model), load_policy(covered(load("llama")))
    reference, rollout = Reference(policy), rollout_of(policy)
    before = policy.logprobs(rollout)
    with torch.no_grad():
        for parameter in [*model.parameters(), *policy.parameters()]:
            parameter.add_(1.0)
    assert torch.equal(frozen.logprobs(rollout), before)
    assert torch.equal(reference.logprobs(rollout), before)
    assert (policy.logprobs(rollout) - before).abs().max() > 0.01
    with observing(model) as seen:
        assert torch.equal(seen.logprobs(rollout), policy.logprobs(rollout))
    assert "forward" in vars(model)


def test_a_frozen_policy_does_not_learn_what_its_model_learns(load):
    model = load("llama").train()
    frozen = frozen_policy(model)
    rollout = rollout_of(frozen)
    before = frozen.observe(rollout)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert torch.equal(frozen.observe(rollout).attention, before.attention)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.config._attn_implementation == "sdpa"


# The tiny models' embeddings are tied to their heads, which PEFT warns of.
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_of_an_adapted_model_it_is_the_base_whose_frozen_weights_are_not_copied(models, load):
    model = adapted(load("llama"), modules_to_save=["lm_head"])
    gradients = [parameter.requires_grad for parameter in model.parameters()]
    frozen, base = frozen_policy(model), load_policy(models / "llama")
    rollout = rollout_of(base)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    assert torch.equal(frozen.logprobs(rollout), base.logprobs(rollout))
    assert torch.equal(frozen.observe(rollout).attention, base.observe(rollout).attention)
    shared = {id(parameter) for parameter in model.parameters()} & {id(own) for own in frozen.parameters()}
    assert len(shared) == len([*load("llama").parameters()])
    assert [parameter.requires_grad for parameter in model.parameters()] == gradients
    assert model.get_base_model().config._attn_implementation == "sdpa"
