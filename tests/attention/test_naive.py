"""The definition itself, on numbers that can be worked out by hand."""

import torch
from tiny_models import build, causal_batch

from cagsr.attention.naive import eager_weights, naive_attention


def test_the_mean_is_over_heads_and_layers_of_response_rows_and_prompt_columns():
    """Two layers of two heads; row 2 looks at column 1 with 1, 0, 1 and 1: the mean is 3/4."""
    first, second = torch.zeros(2, 1, 2, 3, 5)
    first[0, 0, 2, 1] = 1.0
    second[0, :, 2, 1] = 1.0
    first[0, :, 0, 4] = 9.0  # outside the rows and columns
    attention = naive_attention([first, second], slice(1, 3), slice(0, 4))
    expected = torch.zeros(1, 2, 4)
    expected[0, 1, 1] = 0.75
    assert torch.equal(attention, expected)


def test_weights_are_taken_in_eval_mode_and_the_mode_is_restored():
    model, inputs = build("llama", attention_dropout=0.5).train(), causal_batch([11], [7])
    weights = eager_weights(model, **inputs)
    assert all(module.training for module in model.modules())
    torch.testing.assert_close(weights[0].sum(-1), torch.ones(weights[0].shape[:-1]))
