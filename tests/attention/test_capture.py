"""Whole models: attention and logits agree with eager, whatever the padding, and capture keeps its promises."""

import pytest
import torch
from tiny_models import (
    CAUSAL,
    ENCODER_DECODER,
    S,
    T,
    batch,
    build,
    causal_batch,
    positions,
)
from torch import Tensor
from transformers import PreTrainedModel

from cagsr.attention import Readable, capture, inspect
from cagsr.attention.naive import eager_weights, naive_attention

MODELS = [*CAUSAL, *ENCODER_DECODER]
LENGTHS = {"full": ([S, S, S], [T, T, T]), "ragged": ([S, 3, 5], [7, 5, 2])}


@torch.no_grad()
def read(model: PreTrainedModel, readable: Readable, inputs: dict, rows: slice, columns: slice) -> tuple:
    with capture(readable, rows, columns) as reading:
        logits = model(**inputs, use_cache=False).logits
    return reading.attention, logits


@torch.no_grad()
def logits_under(implementation: str, model: PreTrainedModel, inputs: dict) -> Tensor:
    model.set_attn_implementation(implementation)
    logits = model(**inputs, use_cache=False).logits
    model.set_attn_implementation("cagsr")
    return logits


def written(responses: list[int]) -> Tensor:
    """[N T] which response positions are real."""
    return torch.arange(T) < torch.tensor(responses)[:, None]


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("name", MODELS)
def test_attention_and_logits_agree_with_eager(name: str, lengths: str):
    prompts, responses = LENGTHS[lengths]
    model, inputs = build(name), batch(name, prompts, responses)
    rows, columns = positions(name)
    attention, logits = read(model, inspect(model), inputs, rows, columns)
    real = written(responses)
    expected = naive_attention(eager_weights(model, **inputs), rows, columns)
    assert attention.shape == (3, T, S)
    torch.testing.assert_close(attention[real], expected[real], rtol=0, atol=4e-5)
    for implementation, tolerance in (("eager", 1e-3), ("sdpa", 1e-5)):
        theirs = logits_under(implementation, model, inputs)
        torch.testing.assert_close(logits[:, rows][real], theirs[:, rows][real], rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", MODELS)
def test_chosen_layers_are_the_ones_that_are_read(name: str):
    model, inputs = build(name), batch(name, *LENGTHS["full"])
    rows, columns = positions(name)
    attention, _ = read(model, inspect(model, layers=[2, 0]), inputs, rows, columns)
    weights = eager_weights(model, **inputs)
    right = naive_attention([weights[0], weights[2]], rows, columns)
    wrong = naive_attention(weights[:2], rows, columns)
    torch.testing.assert_close(attention, right, rtol=0, atol=4e-5)
    assert (attention - wrong).abs().max() > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_trap_10_padding_and_batch_order_change_no_number(name: str):
    model, (rows, columns) = build(name), positions(name)
    readable = inspect(model)
    prompts, responses = LENGTHS["ragged"]
    inputs = batch(name, prompts, responses)
    attention, _ = read(model, readable, inputs, rows, columns)
    turned, _ = read(model, readable, {key: value.flip(0) for key, value in inputs.items()}, rows, columns)
    for n, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        real = slice(S - prompt, S) if name in CAUSAL else slice(0, prompt)
        alone = {
            key: value[n : n + 1, _unpadded(key, prompt, response, name)] for key, value in inputs.items()
        }
        start = prompt - 1 if name in CAUSAL else 0
        expected, _ = read(model, readable, alone, slice(start, start + response), slice(0, prompt))
        torch.testing.assert_close(attention[n, :response, real], expected[0], rtol=0, atol=1e-5)
        hidden = torch.ones(S, dtype=torch.bool)
        hidden[real] = False
        assert (attention[n][:, hidden] == 0).all()
    for n, response in enumerate(responses):
        torch.testing.assert_close(attention[n, :response], turned[2 - n, :response], rtol=0, atol=1e-5)


def _unpadded(key: str, prompt: int, response: int, name: str) -> slice:
    if name in CAUSAL:
        return slice(S - prompt, S + response)
    return slice(0, response) if key.startswith("decoder") else slice(0, prompt)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
def test_padding_on_the_right_reads_the_same_as_padding_on_the_left(name: str):
    model = build(name)
    readable, left = inspect(model), causal_batch([5], [T])
    attention, _ = read(model, readable, left, slice(S - 1, S - 1 + T), slice(0, S))
    right = {key: value.roll(5 - S, dims=1) for key, value in left.items()}
    moved, _ = read(model, readable, right, slice(4, 4 + T), slice(0, 5))
    torch.testing.assert_close(attention[:, :, S - 5 :], moved, rtol=0, atol=1e-5)


def test_bfloat16_models_are_read():
    model, inputs = build("llama", torch.bfloat16), batch("llama", *LENGTHS["ragged"])
    rows, columns = positions("llama")
    attention, _ = read(model, inspect(model), inputs, rows, columns)
    assert attention.dtype == torch.float32
    expected = naive_attention(eager_weights(model, **inputs), rows, columns)
    real = written([7, 5, 2])
    torch.testing.assert_close(attention[real], expected[real], rtol=0, atol=2e-2)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_training_through_the_same_implementation_gives_the_gradients_of_sdpa(name: str):
    model, inputs = build(name), batch(name, *LENGTHS["full"])
    gradients = []
    for implementation in ("sdpa", "cagsr"):
        model.set_attn_implementation(implementation)
        model.zero_grad()
        model(**inputs).logits.logsumexp(-1).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_two_models_can_be_read_side_by_side(name: str):
    one, other = build(name), build(name)
    inputs, (rows, columns) = batch(name, *LENGTHS["full"]), positions(name)
    alone, _ = read(one, inspect(one), inputs, rows, columns)
    with (
        torch.no_grad(),
        capture(inspect(one), rows, columns) as a,
        capture(inspect(other), rows, columns) as b,
    ):
        one(**inputs), other(**inputs)
    assert torch.equal(a.attention, alone)
    assert torch.equal(b.attention, alone)


def llama() -> tuple[PreTrainedModel, Readable, dict]:
    model = build("llama")
    return model, inspect(model), causal_batch([S], [T])


def test_capture_with_gradients_on_is_an_error():
    _, readable, _ = llama()
    with pytest.raises(RuntimeError, match="no_grad"), capture(readable):
        pass


def test_a_pass_that_turns_gradients_on_is_an_error():
    model, readable, inputs = llama()
    with (
        torch.no_grad(),
        pytest.raises(RuntimeError, match="no_grad"),
        capture(readable),
        torch.enable_grad(),
    ):
        model(**inputs)


def test_two_passes_in_one_capture_are_an_error():
    model, readable, inputs = llama()
    with torch.no_grad(), pytest.raises(RuntimeError, match="called twice"), capture(readable):
        [model(**inputs) for _ in range(2)]


def test_a_capture_in_which_nothing_ran_is_an_error():
    _, readable, _ = llama()
    with torch.no_grad(), pytest.raises(RuntimeError, match="3 of 3 attention modules were not called"):  # noqa: SIM117
        with capture(readable):
            pass


def test_a_capture_of_a_model_under_another_implementation_is_an_error():
    model, readable, inputs = llama()
    model.set_attn_implementation("sdpa")
    with torch.no_grad(), pytest.raises(RuntimeError, match='attn_implementation="cagsr"'), capture(readable):
        model(**inputs)


def test_a_capture_inside_a_capture_of_the_same_modules_is_an_error():
    model, readable, inputs = llama()
    with torch.no_grad(), capture(readable) as reading:
        with pytest.raises(RuntimeError, match="nested"), capture(readable):
            pass
        model(**inputs)
    assert reading.attention.shape == (1, S + T, S + T)


def test_an_error_inside_the_block_is_the_one_that_comes_out_and_nothing_stays_active():
    model, readable, inputs = llama()
    with torch.no_grad(), pytest.raises(KeyError), capture(readable):
        raise KeyError
    attention, _ = read(model, readable, inputs, slice(S - 1, S - 1 + T), slice(0, S))
    assert attention.shape == (1, T, S)


def test_a_reading_keeps_only_its_result():
    model, readable, _ = llama()
    inputs = causal_batch(*LENGTHS["ragged"])  # has a mask, which layers share while the pass runs
    with torch.no_grad(), capture(readable) as reading:
        model(**inputs)
    held = [value for value in vars(reading).values() if isinstance(value, Tensor)]
    assert len(held) == 1
    assert held[0] is reading.attention


def test_cross_attention_rows_sum_to_one_and_self_attention_rows_to_less():
    cross, whole = build("t5"), build("llama")
    attention, _ = read(cross, inspect(cross), batch("t5", [S], [T]), *positions("t5"))
    torch.testing.assert_close(attention.sum(-1), torch.ones(1, T))
    attention, _ = read(whole, inspect(whole), batch("llama", [S], [T]), *positions("llama"))
    sums = attention.sum(-1)[0]
    # The query that predicts the first response token stands on the last prompt token and sees nothing else.
    torch.testing.assert_close(sums[0], torch.tensor(1.0))
    assert (sums[1:] < 1).all()
