"""The traps of attention capture, each with the care that avoids it, and a proof that the care is needed."""

import pytest
import torch
from test_capture import logits_under, read
from tiny_models import LAYERS, S, T, build, causal_batch, encoder_decoder_batch, positions
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from cagsr.attention import ATTENTION, capture, inspect
from cagsr.attention.capture import attention_forward
from cagsr.attention.naive import eager_weights, naive_attention
from cagsr.errors import UnsupportedModelError

RAGGED = ([S, 3, 5], [T, 5, 2])


class Watch(TorchDispatchMode):
    """Notes the largest tensor that is made, and what the CPU flash kernel is given."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.flash_heads: list[tuple[int, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default:
            self.flash_heads.append((args[0].shape[1], args[1].shape[1]))
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            # A view, and a broadcast above all, is no new memory.
            if isinstance(value, torch.Tensor) and value.is_contiguous():
                self.largest = max(self.largest, value.numel())
        return result


def test_trap_01_padding_reaches_the_attention_function():
    """Registered for attention alone, a name gets no mask, and padded T5 logits move."""
    model, inputs = build("t5"), encoder_decoder_batch(*RAGGED)
    assert ATTENTION in ALL_MASK_ATTENTION_FUNCTIONS
    right = logits_under("sdpa", model, inputs)
    torch.testing.assert_close(logits_under(ATTENTION, model, inputs), right, rtol=0, atol=1e-5)
    AttentionInterface.register("attention_only", attention_forward)
    try:
        moved = (logits_under("attention_only", model, inputs) - right).abs().max()
    finally:
        del AttentionInterface._global_mapping["attention_only"]
    assert moved > 0.01


def test_trap_02_the_name_is_neutral():
    assert not any(word in ATTENTION for word in ("sdpa", "flash", "flex", "eager", "paged", "/"))


def test_trap_03_weights_come_from_eager_though_the_model_runs_another_attention():
    model, inputs = build("llama"), causal_batch(*RAGGED)
    with torch.no_grad():
        assert not model(**inputs, output_attentions=True).attentions
    assert [weight.shape for weight in eager_weights(model, **inputs)] == [(3, 6, S + T, S + T)] * LAYERS
    assert model.config._attn_implementation == ATTENTION


@pytest.mark.parametrize(
    ("name", "dropout"), [("llama", {"attention_dropout": 0.5}), ("gpt2", {"attn_pdrop": 0.5})]
)
def test_trap_04_capture_is_exact_in_train_mode(name: str, dropout: dict):
    """The first layer, read before anything is dropped: eager weights in train mode are after dropout."""
    still = {"embd_pdrop": 0.0, "resid_pdrop": 0.0} if name == "gpt2" else {}
    model, inputs = build(name, **dropout, **still), causal_batch([S, S, S], [T, T, T])
    readable = inspect(model, layers=[0])
    calm, _ = read(model, readable, inputs, *positions(name))
    model.train()
    stirred, _ = read(model, readable, inputs, *positions(name))
    torch.testing.assert_close(stirred, calm, rtol=0, atol=1e-6)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        dropped = model(**inputs, output_attentions=True).attentions[0].sum(-1)
    assert (dropped - 1).abs().max() > 0.3


def test_trap_04_dropout_is_still_applied_to_the_output_of_a_read_module():
    model, inputs = build("llama", attention_dropout=0.5), causal_batch([S], [T])
    readable = inspect(model)
    assert not model.training
    _, calm = read(model, readable, inputs, *positions("llama"))
    _, stirred = read(model.train(), readable, inputs, *positions("llama"))
    assert (calm - stirred).abs().max() > 0.01


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_trap_05_only_cross_attention_is_read_though_layer_numbers_repeat(name: str):
    """With prompts as long as responses, shapes cannot tell the three kinds of attention apart either."""
    model = build(name)
    readable = inspect(model)
    numbers = [
        m.layer_idx
        for m in model.modules()
        if type(m) is type(readable.modules[0]) and hasattr(m, "layer_idx")
    ]
    assert max(numbers.count(number) for number in numbers) >= 2
    inputs = {key: value[:, :T] for key, value in encoder_decoder_batch([T, T], [T, T]).items()}
    attention, _ = read(model, readable, inputs, slice(None), slice(None))
    expected = naive_attention(eager_weights(model, **inputs), slice(None), slice(None))
    torch.testing.assert_close(attention, expected, rtol=0, atol=4e-5)
    names = {module: path for path, module in model.named_modules()}
    assert all("EncDecAttention" in names[m] or "encoder_attn" in names[m] for m in readable.modules)


def test_trap_06_the_zero_position_bias_of_cross_attention_costs_nothing():
    """Added to a padding mask it would be an [N H T S] tensor for every layer, as it is under sdpa."""
    model, inputs = build("t5", d_model=3, d_ff=3, vocab_size=11), wide_batch()
    readable = inspect(model)
    with torch.no_grad():
        encoder = model.get_encoder()(inputs["input_ids"], inputs["attention_mask"])
        decoder = {key: inputs[key] for key in ("attention_mask", "decoder_input_ids")}
        with Watch() as reading, capture(readable):
            model(**decoder, encoder_outputs=encoder, use_cache=False)
        with Watch() as plain:
            model(**decoder, encoder_outputs=encoder, use_cache=False)
    rows, heads, t, s = 2, 3, 31, 127
    assert plain.largest >= rows * heads * t * s
    assert reading.largest < rows * heads * t * s


def wide_batch() -> dict[str, torch.Tensor]:
    """Two prompts of 127 tokens, one padded, and responses of 31."""
    mask = torch.ones(2, 127, dtype=torch.long)
    mask[1, 100:] = 0
    return {
        "input_ids": torch.full((2, 127), 3),
        "attention_mask": mask,
        "decoder_input_ids": torch.full((2, 31), 3),
    }


@pytest.mark.parametrize("option", [{"softcap": 30.0}, {"s_aux": torch.zeros(5)}, {"sinks": torch.zeros(5)}])
def test_trap_06_what_sdpa_would_silently_drop_is_refused(option: dict):
    query = torch.zeros(1, 5, 3, 7)
    with pytest.raises(UnsupportedModelError, match=r"softcap|sinks"):
        attention_forward(torch.nn.Module(), query, query, query, None, **option)


def test_trap_06_a_sliding_window_smaller_than_the_keys_is_in_what_is_read():
    model, inputs = build("mistral"), causal_batch([S], [T])
    attention, _ = read(model, inspect(model), inputs, *positions("mistral"))
    # Row t stands at position S - 1 + t and, with a window of 5, sees nothing before position S + t - 5.
    for t in range(T):
        first = S + t - 5
        assert (attention[0, t, :first] == 0).all()
        assert (attention[0, t, first:] > 0).all()


def test_trap_08_rows_are_the_steps_of_generate_beginning_with_the_decoder_start_token():
    """Row t of A is the query that predicts response token t: step t of greedy generation."""
    # generate() makes its cache as deep as the encoder, so that must not be the shallower one.
    model, inputs = build("t5", num_layers=LAYERS), encoder_decoder_batch([S], [T])
    prompt = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    model.set_attn_implementation("eager")
    generated = model.generate(
        **prompt, max_new_tokens=5, min_new_tokens=5, do_sample=False,
        return_dict_in_generate=True, output_attentions=True,
    )  # fmt: skip
    model.set_attn_implementation(ATTENTION)
    steps = [torch.stack(step).mean((0, 2))[:, -1] for step in generated.cross_attentions]
    inputs = {**prompt, "decoder_input_ids": generated.sequences[:, :-1]}
    attention, _ = read(model, inspect(model), inputs, slice(None), slice(None))
    assert attention.shape == (1, 5, S)
    torch.testing.assert_close(attention, torch.stack(steps, 1), rtol=0, atol=1e-5)


def test_trap_09_a_forward_pass_that_will_be_recomputed_is_read_once_and_exactly():
    model, inputs = build("llama"), causal_batch([S], [T])
    readable, (rows, columns) = inspect(model), positions("llama")
    expected, _ = read(model, readable, inputs, rows, columns)
    model.activation_checkpointing_enable()
    model.train()
    loss = model(**inputs, use_cache=False).logits.sum()
    attention, _ = read(model, readable, inputs, rows, columns)
    loss.backward()  # the attention function runs again for every layer
    assert torch.equal(attention, expected)


def test_trap_09_recomputation_inside_a_capture_is_an_error_and_not_a_second_count():
    model, inputs = build("llama"), causal_batch([S], [T])
    readable = inspect(model)
    model.activation_checkpointing_enable()
    model.train()
    loss = model(**inputs, use_cache=False).logits.sum()
    with torch.no_grad(), pytest.raises(RuntimeError, match="no_grad"), capture(readable):
        loss.backward()


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_trap_13_padding_does_not_make_grouped_heads_repeat_their_keys(name: str):
    model, inputs = build(name), causal_batch(*RAGGED)
    readable = inspect(model)
    heads, groups = model.config.num_attention_heads, model.config.num_key_value_heads
    with torch.no_grad(), Watch() as watch, capture(readable, *positions(name)):
        model(**inputs, use_cache=False)
    assert watch.flash_heads == [(heads, groups)] * LAYERS
    with torch.no_grad(), Watch() as watch:
        model(**inputs, use_cache=False)
    assert watch.flash_heads != [(heads, groups)] * LAYERS


def test_no_tensor_of_all_heads_is_ever_made():
    """Not one [H T S] of one layer and one row; eager makes [N H Q K] of every layer."""
    model, (s, t) = build("llama"), (211, 199)
    heads, readable = model.config.num_attention_heads, inspect(model)
    inputs = {"input_ids": torch.randint(3, 41, (1, s + t), generator=torch.Generator().manual_seed(3))}
    with torch.no_grad(), Watch() as plain:
        model(**inputs, use_cache=False)
    with torch.no_grad(), Watch() as reading, capture(readable, slice(s - 1, s - 1 + t), slice(0, s)):
        model(**inputs, use_cache=False)
    with Watch() as eager:
        eager_weights(model, **inputs)
    assert reading.largest == max(plain.largest, t * s) < heads * t * s
    assert eager.largest >= heads * (s + t) ** 2
