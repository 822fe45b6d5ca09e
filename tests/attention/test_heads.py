"""Heads: attention weighted by head, and head by head, agrees with eager in every path that reads it."""

import pytest
import torch
from test_shared_prompt import alone, policy_of, rolled
from tiny_models import CAUSAL, ENCODER_DECODER, S, T, batch, build, positions

import tiny
from cagsr.attention import capture, inspect
from cagsr.attention.naive import eager_weights

MODELS = [*CAUSAL, *ENCODER_DECODER]


def table(layers: tuple[int, ...], heads: int) -> dict[int, list[float]]:
    """Another weight for every head; of the first layer none, of the others not the second head."""
    return {
        layer: [0.0 if not place or head == 1 else place + head / 7 for head in range(heads)]
        for place, layer in enumerate(layers)
    }


def heads_of(model) -> int:
    text = model.config.get_text_config(decoder=True)
    return getattr(text, "num_attention_heads", None) or text.num_heads


@pytest.mark.parametrize("name", MODELS)
def test_weighted_attention_is_the_weighted_sum_of_the_eager_heads(name: str):
    model, inputs = build(name), batch(name, [S, 3, 5], [7, 5, 2])
    (rows, columns), readable = positions(name), inspect(model)
    weights = table(readable.layers, heads_of(model))
    total = sum(map(sum, weights.values()))
    with torch.no_grad(), capture(readable.weighted(weights), rows, columns) as reading:
        model(**inputs, use_cache=False)
    eager = dict(zip(readable.layers, eager_weights(model, **inputs), strict=True))
    expected = sum(
        weight / total * eager[layer][:, head, rows, columns].float()
        for layer, row in weights.items()
        for head, weight in enumerate(row)
    )
    real = torch.arange(T) < torch.tensor([7, 5, 2])[:, None]
    torch.testing.assert_close(reading.attention[real], expected[real], rtol=0, atol=4e-5)


@pytest.mark.parametrize("name", MODELS)
def test_heads_that_weigh_the_same_are_read_as_if_nobody_had_weighed_them(name: str):
    policy = policy_of(name)
    rollout, heads = rolled(policy), heads_of(policy.model)
    expected = policy.observe(rollout).attention
    policy.readable = policy.readable.weighted({layer: [3.0] * heads for layer in policy.readable.layers})
    torch.testing.assert_close(policy.observe(rollout).attention, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", MODELS)
def test_weighted_attention_is_the_same_shared_alone_and_head_by_head(name: str):
    policy = policy_of(name)
    rollout, heads = rolled(policy), heads_of(policy.model)
    weights = table(policy.readable.layers, heads)
    total = sum(map(sum, weights.values()))
    each = policy.observe_heads(rollout, lambda attention: attention)
    expected = sum(
        weight / total * each[layer][head]
        for layer, row in weights.items()
        for head, weight in enumerate(row)
    )
    with alone(policy):
        one_by_one = policy.observe_heads(rollout, lambda attention: attention)
        for layer, row in each.items():
            torch.testing.assert_close(torch.stack(row), torch.stack(one_by_one[layer]), rtol=1e-5, atol=2e-6)
    policy.readable = policy.readable.weighted(weights)
    assert policy.readable.layers == tuple(weights)[1:]
    torch.testing.assert_close(policy.observe(rollout).attention, expected, rtol=1e-5, atol=2e-6)
    with alone(policy):
        torch.testing.assert_close(policy.observe(rollout).attention, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", ["llama", "mistral", "t5", "bart"])
def test_weighted_heads_are_read_while_decoding_as_in_a_pass_over_the_rollout(name: str):
    policy = policy_of(name, torch.float32)
    policy.readable = policy.readable.weighted(table(policy.readable.layers, heads_of(policy.model)))
    rollout, seen = policy.sample_observed(rolled(policy).prompts, tiny.sampling(max_new_tokens=7))
    assert seen is not None
    torch.testing.assert_close(seen.attention, policy.observe(rollout).attention, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize(
    "weights",
    [{}, {0: [0.0, 0.0]}, {0: [-1.0, 2.0]}, {7: [1.0, 1.0]}],
    ids=["none", "zero", "negative", "unknown"],
)
def test_weights_that_are_no_weights_are_refused(weights: dict[int, list[float]]):
    with pytest.raises(ValueError, match="weights of heads"):
        inspect(build("llama")).weighted(weights)
