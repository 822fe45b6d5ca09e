"""Which models are read, which layers of them, and the plain refusal of the others."""

import re

import pytest
import torch
from tiny_models import CAUSAL, ENCODER_DECODER, GROUPED, LAYERS, SHAPE, batch, build, positions
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from cagsr.attention import ATTENTION, capture, inspect
from cagsr.attention.naive import eager_weights, naive_attention
from cagsr.errors import InputError, UnsupportedModelError

EXPERTS = {"num_experts": 2, "num_local_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}


def other(model_type: str, settings: dict, loader: type = AutoModelForCausalLM, attention: str = ATTENTION):
    torch.manual_seed(7)
    return loader.from_config(
        AutoConfig.for_model(model_type, **settings), attn_implementation=attention
    ).eval()


@pytest.mark.parametrize("name", [*CAUSAL, *ENCODER_DECODER])
def test_every_layer_is_found_in_order(name: str):
    model = build(name)
    readable = inspect(model)
    assert readable.layers == tuple(range(LAYERS))
    assert (readable.kind, readable.total) == ("causal" if name in CAUSAL else "encoder-decoder", LAYERS)
    order = [module for module in model.modules() if module in readable.modules]
    assert order == list(readable.modules)


@pytest.mark.parametrize(
    ("layers", "numbers"),
    [("all", (0, 1, 2)), ("last", (2,)), ("last_half", (1, 2)), ([2, 0], (0, 2)), ((1,), (1,))],
)
def test_layers_are_chosen_by_name_or_number(layers: str | list[int], numbers: tuple[int, ...]):
    model = build("llama")
    readable = inspect(model, layers=layers)
    assert readable.layers == numbers
    assert readable.modules == tuple(model.model.layers[number].self_attn for number in numbers)


def test_a_readable_says_what_it_reads():
    assert str(inspect(build("bart"), layers="last_half")) == "cross-attention of 2 of 3 layers (1, 2)"
    assert str(inspect(build("llama"), layers=[0])) == "self-attention of 1 of 3 layers (0)"


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([1, 3], r"llama has no readable attention in layers \[3\]; choose from 0, 1, 2"),
        ([], r"llama has no readable attention in layers \[\]; choose from 0, 1, 2"),
        ("lst", "layers must be all, last, last_half or a list of numbers, got 'lst'"),
    ],
)
def test_layers_that_do_not_exist_are_refused(layers: str | list[int], message: str):
    with pytest.raises(InputError, match=message):
        inspect(build("llama"), layers=layers)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_the_model_is_left_as_it_was(name: str):
    model = build(name)
    model.train()
    frozen = next(
        module
        for module in model.modules()
        if "ayerNorm" in type(module).__name__ or "RMS" in type(module).__name__
    )
    frozen.training = False
    before = [module.training for module in model.modules()]
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    inspect(model)
    assert [module.training for module in model.modules()] == before
    assert {
        module.config._attn_implementation for module in model.modules() if hasattr(module, "config")
    } == {ATTENTION}
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_refused_model_is_left_as_it_was():
    model = other("gemma2", GROUPED | {"head_dim": 4}).train()
    with pytest.raises(UnsupportedModelError):
        inspect(model)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("vocabulary", [2, 5])
def test_the_probe_uses_only_token_ids_that_exist(vocabulary: int):
    assert inspect(build("llama", vocab_size=vocabulary, eos_token_id=1)).layers == (0, 1, 2)


def test_the_probe_holds_no_padding_token():
    """Models that take their mask or positions from the padding token would otherwise be probed elsewhere."""
    model, seen = build("llama", pad_token_id=5), []
    model.model.embed_tokens.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    inspect(model)
    assert seen
    assert not any((ids == 5).any() for ids in seen)


def test_layers_whose_numbers_repeat_are_counted_in_order(monkeypatch: pytest.MonkeyPatch):
    model = build("llama")
    paths = [(re.sub(r"\d", "0", path), module) for path, module in model.named_modules()]
    monkeypatch.setattr(model, "named_modules", lambda *_, **__: iter(paths))
    assert inspect(model).layers == (0, 1, 2)


def test_a_copy_of_a_model_has_modules_of_its_own():
    one, two = build("llama"), build("llama")
    assert not set(inspect(one).modules) & set(inspect(two).modules)


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("mamba", SHAPE),
        ("rwkv", SHAPE | {"attention_hidden_size": 20}),
        ("bloom", SHAPE | {"n_head": 5, "n_layer": 2}),
    ],
)
def test_trap_07_a_model_without_attention_that_we_reach_is_refused(model_type: str, settings: dict):
    with pytest.raises(UnsupportedModelError, match=f"{model_type} has no attention"):
        inspect(other(model_type, settings))


@pytest.mark.parametrize("loader", [AutoModelForCausalLM, AutoModelForMaskedLM])
def test_trap_07_an_encoder_is_refused_under_either_head(loader: type):
    """BertLMHeadModel says that it can generate; that it looks ahead gives it away."""
    model = other("bert", SHAPE, loader)
    model.config.name_or_path = "bert-base"
    message = r"^bert-base cannot generate; needs a causal or encoder-decoder LM\.$"
    with pytest.raises(UnsupportedModelError, match=message):
        inspect(model)


def test_trap_07_softcap_is_refused_by_name():
    with pytest.raises(UnsupportedModelError, match="Gemma2Attention uses a softcap"):
        inspect(other("gemma2", GROUPED | {"head_dim": 4}))


def test_trap_07_sinks_are_refused_by_name():
    with pytest.raises(UnsupportedModelError, match="GptOssAttention uses attention sinks"):
        inspect(other("gpt_oss", GROUPED | EXPERTS | {"head_dim": 4}))


def test_trap_07_merged_self_and_cross_attention_is_refused():
    text = GROUPED | {"head_dim": 4}
    vision = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    encoder = {"text_config": text, "vision_config": vision | {"image_size": 28, "patch_size": 14}}
    model = other("t5gemma2", {"encoder": encoder, "decoder": text}, AutoModelForSeq2SeqLM)
    with pytest.raises(UnsupportedModelError, match="merges self-attention and cross-attention"):
        inspect(model)


def test_trap_07_a_hybrid_is_read_in_the_layers_that_have_attention():
    mamba = {"mamba_d_state": 4, "attn_layer_period": 2, "attn_layer_offset": 1}
    model = other("jamba", GROUPED | EXPERTS | mamba | {"num_hidden_layers": 4})
    readable = inspect(model)
    assert (readable.layers, readable.total) == ((1, 3), 2)
    inputs, (rows, columns) = batch("llama", [11], [7]), positions("llama")
    with torch.no_grad(), capture(readable, rows, columns) as reading:
        model(**inputs, use_cache=False)
    expected = naive_attention(eager_weights(model, **inputs), rows, columns)
    torch.testing.assert_close(reading.attention, expected, rtol=0, atol=1e-5)


def test_a_model_loaded_for_another_attention_is_refused_with_the_mend():
    model = other("llama", GROUPED, attention="sdpa")
    with pytest.raises(UnsupportedModelError, match=r'call model\.set_attn_implementation\("cagsr"\)'):
        inspect(model)
    model.set_attn_implementation("cagsr")
    assert inspect(model).total == LAYERS


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "bart"])
def test_sharp_attention_of_a_short_type_is_read_although_it_rounds_otherwise(name: str, dtype: torch.dtype):
    model = build(name)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(2)
    inspect(model)
    weights = {key: value.clone() for key, value in model.to(dtype).state_dict().items()}
    assert inspect(model).total == LAYERS
    for key, value in model.state_dict().items():
        assert value.dtype == dtype
        assert torch.equal(value, weights[key])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("broken", ["scale", "mask"])
def test_attention_that_differs_from_the_models_own_is_refused(
    broken: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    """The probe compares numbers: an attention function that is nearly right does not pass."""
    model = build("llama").to(dtype)
    layer = model.model.layers[1].self_attn
    if broken == "scale":
        eager = model.model.layers[1].self_attn.scaling

        def forward(*args, **kwargs):
            layer.scaling = eager * (1.02 if model.config._attn_implementation == ATTENTION else 1.0)
            return type(layer).forward(layer, *args, **kwargs)
    else:

        def forward(*args, **kwargs):
            if model.config._attn_implementation == ATTENTION:
                kwargs["attention_mask"] = None
            return type(layer).forward(layer, *args, **kwargs)

    monkeypatch.setattr(layer, "forward", forward)
    with pytest.raises(UnsupportedModelError, match="layer 1 cannot be read exactly"):
        inspect(model)
    assert inspect(model, layers=[0]).layers == (0,)


def test_attention_that_an_index_makes_sparse_is_refused():
    model = build("llama")
    model.config.index_topk = 17
    with pytest.raises(UnsupportedModelError, match="chooses by an index which keys its attention sees"):
        inspect(model)
