"""A model is proved when it is loaded: it samples, scores and observes what it computes alone, or is refused."""

import copy
from dataclasses import replace

import pytest
import torch
from odd_models import (
    BART,
    GROUPED,
    SHAPE,
    asked,
    by_hand,
    causal,
    composite,
    encoder_decoder,
    taken,
    words_of,
)
from torch import nn
from transformers import AutoConfig

import tiny
from cagsr.attention.naive import eager_weights
from cagsr.attention.sharing import Sharing
from cagsr.config.schema import Data
from cagsr.data.prompts import Row, encode, encoding
from cagsr.errors import InputError, UnsupportedModelError
from cagsr.models.load import save_model
from cagsr.models.load_policy import load_policy

RATES = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
ROPE = {"rope_theta": 1e4}
DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0} | ROPE}
LONGROPE = {
    "max_position_embeddings": 256,
    "original_max_position_embeddings": 32,
    "rope_parameters": {
        "rope_type": "longrope",
        "original_max_position_embeddings": 32,
        "short_factor": [1.0, 1.0],
        "long_factor": [4.0, 8.0],
    }
    | ROPE,
}
T5 = {"d_model": 20, "d_kv": 6, "d_ff": 28, "num_layers": 1, "num_decoder_layers": 3, "num_heads": 3}
MOE = {"num_local_experts": 3, "num_experts_per_tok": 2}
POSITIONS = {
    "roberta": lambda: causal("roberta", **SHAPE, is_decoder=True),
    "xlm-roberta": lambda: causal("xlm-roberta", **SHAPE, is_decoder=True),
    "camembert": lambda: causal("camembert", **SHAPE, is_decoder=True),
    "bart": lambda: causal("bart", **BART),
    "mbart": lambda: causal("mbart", **BART),
    "pegasus": lambda: causal("pegasus", **BART),
    "opt": lambda: causal("opt", **SHAPE, ffn_dim=28, word_embed_proj_dim=20),
    "bert2bert": lambda: composite("bert", "bert"),
    "roberta2roberta": lambda: composite("roberta", "roberta"),
    "bert2gpt2": lambda: composite("bert", "gpt2"),
    # Its router's jitter is a width that evaluation needs too.
    "phimoe": lambda: causal("phimoe", **GROUPED, **MOE),
    "t5 with more decoder layers": lambda: encoder_decoder("t5", **T5),
}


@pytest.mark.parametrize("name", POSITIONS)
def test_scores_beside_a_longer_prompt_are_those_of_the_model_alone(name):
    model = POSITIONS[name]()
    plain = copy.deepcopy(model)
    policy = load_policy(model, words_of(model))
    rollout = asked(policy, (3, 17, 7), (5, 2, 1, 4, 3, 5))
    expected = taken(by_hand(plain, policy, rollout), rollout)
    for found in (
        policy.logprobs(rollout),
        policy(rollout).logprobs.detach(),
        policy.observe(rollout).logprobs,
    ):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", POSITIONS)
def test_what_is_sampled_beside_a_longer_prompt_is_likeliest_for_the_model_alone(name):
    model = POSITIONS[name]()
    plain = copy.deepcopy(model)
    policy = load_policy(model, words_of(model))
    rollout = policy.sample(tiny.prompts(policy, (3, 17, 7)), tiny.sampling(candidates=2, temperature=0.0))
    for row, logprobs in enumerate(by_hand(plain, policy, rollout)):
        assert rollout.response_ids[row, : len(logprobs)].tolist() == logprobs.argmax(-1).tolist()


@pytest.mark.parametrize("name", ["roberta", "bart"])
def test_attention_beside_a_longer_prompt_is_that_of_the_model_alone(name):
    model = POSITIONS[name]()
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("eager")
    policy = load_policy(model, words_of(model))
    rollout = asked(policy, (3, 11), (5, 2, 1, 4))
    attention = policy.observe(rollout).attention
    for row, mask in enumerate(rollout.response_mask):
        prompt, written = rollout.prompts[row // 2], rollout.response_ids[row][mask].tolist()
        weights = torch.stack(eager_weights(plain, **tiny.inputs_of(policy, prompt, written))).mean((0, 1, 2))
        size = len(prompt.ids)
        expected = weights[size - 1 : size - 1 + len(written), :size]
        found = attention[row, : len(written)]
        torch.testing.assert_close(found[:, rollout.prompt_mask[row // 2]], expected, rtol=1e-4, atol=1e-5)
        assert not found[:, ~rollout.prompt_mask[row // 2]].any()


def test_the_way_that_is_used_is_named():
    roberta = load_policy(POSITIONS["roberta"](), tiny._tokenizer("causal"))
    assert roberta.sharing == Sharing()
    bart = load_policy(POSITIONS["bart"](), tiny._tokenizer("causal"))
    assert not bart.sharing.padded
    assert "one prompt at a time (" in str(bart.sharing)
    assert [(tried.way, tried.problem is None) for tried in bart.proof[:3]] == [
        ("shared", False),
        ("padded", False),
        ("prompt by prompt", True),
    ]
    assert str(bart.proof[2]).startswith("prompt by prompt, 10 tokens: agrees within ")
    assert all(tried.nats < 1e-4 for tried in roberta.proof)


def test_a_decoder_whose_positions_depend_on_its_cache_is_refused_by_name():
    """RoBERTa counts no position for padding, and this one's start token is padding: only a whole pass knows."""
    model = composite("roberta", "roberta", start=tiny._tokenizer("encoder-decoder").pad_token_id)
    with pytest.raises(
        UnsupportedModelError, match=r"encoder-decoder computes .* its samples would be off by"
    ):
        load_policy(model, words_of(model))


def test_a_decoder_that_sees_what_comes_later_is_refused():
    """pegasus_x: without a mask of its own for this implementation, later tokens move the first one's probability."""
    model = encoder_decoder("pegasus_x", **BART, block_size=16, num_global_tokens=4)
    with pytest.raises(UnsupportedModelError, match=r"pegasus_x computes .* would be off by .* nats"):
        load_policy(model, words_of(model))


# Limits -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings", "limit"),
    [("llama", GROUPED | {"max_position_embeddings": 32} | DYNAMIC, 32), ("phi3", GROUPED | LONGROPE, 32)],
)
def test_positions_that_turn_with_the_longest_text_are_the_models_context(kind, settings, limit):
    model = causal(kind, **settings)
    plain = copy.deepcopy(model)
    policy = load_policy(model, words_of(model))
    assert policy.context == limit
    short, long = tiny.prompts(policy, (18, 5)), tiny.prompts(policy, (25, 5))
    rollout = policy.sample(short, tiny.sampling(candidates=1, temperature=0.0, max_new_tokens=14))
    for row, logprobs in enumerate(by_hand(plain, policy, rollout)):
        assert rollout.response_ids[row, : len(logprobs)].tolist() == logprobs.argmax(-1).tolist()
    before = policy.logprobs(rollout)
    with pytest.raises(
        InputError, match="39 tokens of a prompt and its response, and the model's context has 32"
    ):
        policy.sample(long, tiny.sampling(max_new_tokens=14))
    with pytest.raises(InputError, match="the model's context has 32"):
        policy.logprobs(asked(policy, (25,), (14,)))
    assert torch.equal(policy.logprobs(rollout), before)


@pytest.mark.parametrize(
    ("settings", "context"),
    [({"max_position_embeddings": 66}, 64), ({"max_position_embeddings": 66, "pad_token_id": 5}, 60)],
)
def test_positions_that_padding_takes_are_no_part_of_the_context(settings, context):
    model = causal("roberta", **SHAPE | settings, is_decoder=True)
    policy = load_policy(model, words_of(model))
    start = model.config.pad_token_id + 1
    assert policy.context == 66 - start
    full = asked(policy, (66 - start - 4,), (4,))
    assert policy.logprobs(full).isfinite().all()


def test_a_prompt_is_held_to_the_encoder_and_a_response_to_the_decoder():
    model = composite("bert", "gpt2", encoder_positions=23)
    policy = load_policy(model, words_of(model))
    assert (policy.context, policy.response_limit) == (23, 64)
    words = policy.tokenizer.convert_ids_to_tokens(list(range(5, 5 + 29)))
    rows = [Row({"prompt": " ".join(words[:length])}, f"row {n}") for n, length in enumerate((7, 29), 1)]
    with pytest.raises(InputError, match=r"row 2: 30 prompt \+ 0 new tokens > 23 context"):
        encode(rows, **encoding(policy, Data(source="unused"), 11))
    with pytest.raises(
        InputError, match="65 tokens, and the model's decoder has positions for responses of 64"
    ):
        policy.sample(tiny.prompts(policy, (5,)), tiny.sampling(max_new_tokens=65))
    with pytest.raises(InputError, match="24 tokens of a prompt, and the model's context has 23"):
        policy.logprobs(asked(policy, (24,), (3,)))


# Training mode ------------------------------------------------------------------------------------------------------


TRAINED = {
    "bert2bert": lambda: composite("bert", "bert", **RATES),
    "roberta2roberta": lambda: composite("roberta", "roberta", **RATES),
    "bert2gpt2": lambda: composite("bert", "gpt2", attn_pdrop=0.1, embd_pdrop=0.1, resid_pdrop=0.1),
    "phimoe": lambda: causal("phimoe", **GROUPED, **MOE),
    "t5": lambda: tiny.make_model("t5"),
}


@pytest.mark.parametrize("name", TRAINED)
def test_two_passes_of_an_update_with_gradient_checkpointing_are_equal_to_the_bit(name):
    model = TRAINED[name]()
    policy = load_policy(model, words_of(model))
    policy.model.activation_checkpointing_enable({"use_reentrant": False})
    rollout = asked(policy, (3, 7), (5, 2, 1, 4))
    evaluated = policy.logprobs(rollout)
    policy.train()
    assert policy.training
    first, second = (policy(rollout).logprobs for _ in range(2))
    assert torch.equal((first - second).exp(), torch.ones_like(first))
    assert torch.equal(first, policy(rollout).logprobs)
    torch.testing.assert_close(first.detach(), evaluated, rtol=1e-5, atol=1e-5)
    first.sum().backward()
    checkpointed = [parameter.grad for parameter in policy.parameters()]
    policy.zero_grad()
    policy.eval()
    policy(rollout).logprobs.sum().backward()
    for found, parameter in zip(checkpointed, policy.parameters(), strict=True):
        if parameter.grad is not None:
            torch.testing.assert_close(found, parameter.grad, rtol=1e-4, atol=1e-5)


def test_rates_of_inner_configs_are_off_and_are_saved_as_they_were(tmp_path):
    model = composite("bert", "bert", **RATES)
    policy = load_policy(model, words_of(model))
    assert policy.dropout == {f"{half}.{name}": 0.1 for half in ("encoder", "decoder") for name in RATES}
    assert policy.model.config.encoder.hidden_dropout_prob == 0.0
    policy.model.train()
    rollout = asked(policy, (3, 7), (5, 2))
    assert torch.equal(policy.logprobs(rollout), policy.logprobs(rollout))
    save_model(policy, tmp_path / "saved")
    saved = AutoConfig.from_pretrained(tmp_path / "saved")
    assert saved.decoder.attention_probs_dropout_prob == saved.encoder.hidden_dropout_prob == 0.1
    assert policy.model.config.encoder.hidden_dropout_prob == 0.0
    loaded = load_policy(tmp_path / "saved")
    assert loaded.dropout == policy.dropout
    torch.testing.assert_close(loaded.logprobs(rollout), policy.logprobs(rollout))


class Dropping(nn.Module):
    """A layer with a rate that nothing can find: a literal."""

    def __init__(self, always: bool):
        super().__init__()
        self.always = always

    def forward(self, hidden):
        return nn.functional.dropout(hidden, 0.1, self.always or self.training)


def test_dropout_by_a_literal_stays_off_where_training_mode_never_comes():
    model = causal("llama", **GROUPED)
    model.model.norm = nn.Sequential(model.model.norm, Dropping(always=False))
    policy = load_policy(model, words_of(model))
    rollout = asked(policy, (3, 7), (5, 2))
    before = policy.logprobs(rollout)
    policy.train()
    assert torch.equal(policy.logprobs(rollout), before)


def test_dropout_by_a_literal_in_a_layer_that_is_recomputed_is_refused():
    model = causal("llama", **GROUPED)
    layer = model.model.layers[1]

    class Layer(type(layer)):
        def forward(self, hidden, *given, **named):
            return nn.functional.dropout(super().forward(hidden, *given, **named), 0.1, self.training)

    layer.__class__ = Layer
    with pytest.raises(UnsupportedModelError, match="computes something random in training mode"):
        load_policy(model, words_of(model))


def test_what_is_random_in_every_mode_is_refused():
    model = causal("llama", **GROUPED)
    model.lm_head = nn.Sequential(Dropping(always=True), model.lm_head)
    with pytest.raises(UnsupportedModelError, match="random in evaluation mode"):
        load_policy(model, words_of(model))


M2M = {
    **{
        f"{half}_{name}": value
        for half in ("encoder", "decoder")
        for name, value in {"layers": 2, "ffn_dim": 28, "attention_heads": 5}.items()
    },
    "d_model": 20,
    "decoder_start_token_id": 2,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    "model",
    [lambda: causal("roberta", **SHAPE, is_decoder=True), lambda: encoder_decoder("m2m_100", **M2M)],
    ids=["roberta", "m2m_100"],
)
def test_a_model_that_counts_no_position_for_padding_draws_none_inside_a_response(model):
    model = model()
    plain = copy.deepcopy(model)

    def likes_padding(module, given, output):
        output.logits[..., 0] += 6

    policy = load_policy(model, words_of(model), target_language=None)
    for one in (policy.model, plain):
        one.register_forward_hook(likes_padding)
    rollout, seen = policy.sample_observed(
        tiny.prompts(policy, (3, 7)), tiny.sampling(candidates=3, max_new_tokens=11, temperature=1.0)
    )
    assert not (rollout.response_ids[rollout.response_mask] == 0).any()
    expected = taken(by_hand(plain, policy, rollout), rollout)
    for found in (policy.logprobs(rollout), *([] if seen is None else [seen.logprobs])):
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("padding", [0, 1])  # its own, and its end of sequence
def test_such_padding_inside_a_text_is_refused(padding):
    words = copy.deepcopy(tiny._tokenizer("causal"))
    words.pad_token = words.convert_ids_to_tokens(padding)
    policy = load_policy(causal("roberta", **SHAPE | {"pad_token_id": padding}, is_decoder=True), words)
    (prompt,) = tiny.prompts(policy, (3,))
    message = f"has token {padding} inside: the model takes it for padding, which has no position"
    with pytest.raises(InputError, match=f"a given response {message}"):
        policy.given_ids([prompt], [[5, padding, 7]])
    assert policy.given_ids([prompt], [[5, 7, policy.eos_ids[0]]]).finished.all()
    spelt = replace(prompt, ids=(5, padding, 7))
    with pytest.raises(InputError, match=f"the prompt of index 0 {message}"):
        policy.sample([spelt], tiny.SHORT)
    row = Row({"prompt": " ".join(words.convert_ids_to_tokens(spelt.ids))}, "row 3")
    how = encoding(policy, Data(source="unused", special_tokens="control"), 11)
    with pytest.raises(InputError, match=f"row 3: prompt {message}"):
        encode([row], **how)


def test_padding_inside_a_prompt_is_a_token_to_a_model_that_counts_it():
    policy = load_policy(causal("llama", **GROUPED), tiny._tokenizer("causal"))
    (prompt,) = tiny.prompts(policy, (3,))
    assert policy.given_ids([replace(prompt, ids=(5, 0, 7))], [[5, 0, 7]]).response_ids.tolist() == [
        [5, 0, 7]
    ]
