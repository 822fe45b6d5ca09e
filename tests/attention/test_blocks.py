"""The same queries and keys: what is read must be the softmax itself, to the accuracy of float32."""

import pytest
import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from cagsr.attention import Readable, blocks, capture
from cagsr.attention.capture import attention_forward

N, T, D = 3, 63, 60
MASKS = ["none", "causal", "bool", "float", "finfo", "bias", "bias and bool", "bias and causal"]


class Attention(nn.Module):
    def __init__(self, groups: int = 1, is_causal: bool = False) -> None:
        super().__init__()
        self.num_key_value_groups, self.is_causal = groups, is_causal


def tensors(heads: int, kv_heads: int, queries: int, keys: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(5)
    query = torch.randn(N, queries, heads, D).transpose(1, 2)
    key, value = torch.randn(2, N, keys, kv_heads, D).transpose(2, 3)
    return query, key, value


def masking(kind: str, heads: int, queries: int, keys: int) -> dict[str, Tensor | None]:
    """The mask and position bias of one kind; where there is a mask, the first 11 keys of row 1 are hidden."""
    seen = torch.ones(N, 1, queries, keys, dtype=torch.bool)
    seen[1, :, :, :11] = False
    hidden = torch.zeros(seen.shape)
    bias = torch.randn(1, heads, queries, keys)
    return {
        "none": {},
        "causal": {},
        "bool": {"attention_mask": seen},
        "float": {"attention_mask": hidden.masked_fill(~seen, -torch.inf)},
        "finfo": {"attention_mask": hidden.masked_fill(~seen, torch.finfo(torch.float32).min)},
        "bias": {"position_bias": bias},
        "bias and bool": {"position_bias": bias, "attention_mask": seen},
        "bias and causal": {"position_bias": bias},
    }[kind]


def reference(query: Tensor, key: Tensor, masks: dict, is_causal: bool) -> Tensor:
    """[N H Q K] in float64, from the definition."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = query.double() @ key.double().transpose(-1, -2) * query.shape[-1] ** -0.5
    mask = masks.get("attention_mask")
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -torch.inf)
    elif mask is not None:
        scores = scores + mask.double()
    if masks.get("position_bias") is not None:
        scores = scores + masks["position_bias"].double()
    if is_causal:
        ahead = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(ahead, -torch.inf)
    return scores.softmax(-1)


def read(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, masks: dict, rows: slice, columns: slice, **options
) -> tuple[Tensor, Tensor]:
    arguments = {"attention_mask": None, **masks, **options}
    with torch.no_grad(), capture(Readable("causal", (module,), (0,), 1), rows, columns) as reading:
        output, _ = attention_forward(module, q, k, v, **arguments)
    return output, reading.attention


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize(("heads", "kv_heads"), [(5, 5), (6, 2), (7, 1)])
def test_trap_11_same_queries_and_keys_agree_with_float64_to_1e_6(kind: str, heads: int, kv_heads: int):
    is_causal = kind.endswith("causal")
    queries, keys = (T, T) if is_causal else (T, 71)
    q, k, v = tensors(heads, kv_heads, queries, keys)
    module = Attention(heads // kv_heads, is_causal)
    masks = masking(kind, heads, queries, keys)
    rows, columns = slice(17, 60), slice(3, 40)  # reaches beyond the diagonal
    output, attention = read(module, q, k, v, masks, rows, columns)
    weights = reference(q, k, masks, is_causal)
    assert attention.dtype == torch.float32
    torch.testing.assert_close(attention.double(), weights[:, :, rows, columns].mean(1), rtol=0, atol=1e-6)
    expected, _ = sdpa_attention_forward(module, q, k, v, **{"attention_mask": None, **masks})
    torch.testing.assert_close(output, expected, rtol=0, atol=0 if kv_heads == heads else 1e-6)


@pytest.mark.parametrize("kind", ["bool", "float", "finfo", "bias and bool"])
def test_hidden_columns_are_exactly_zero(kind: str):
    q, k, v = tensors(5, 5, T, 71)
    _, attention = read(Attention(), q, k, v, masking(kind, 5, T, 71), slice(None), slice(None))
    assert (attention[1, :, :11] == 0).all()
    assert (attention[0, :, :11] > 0).all()


@pytest.mark.parametrize("hide", [-torch.inf, torch.finfo(torch.float32).min, False])
def test_a_row_that_sees_nothing_reads_zero_and_leaves_no_nan(hide: float | bool):
    q, k, v = tensors(5, 5, 7, 11)
    mask = torch.ones(N, 1, 7, 11, dtype=torch.bool) if hide is False else torch.zeros(N, 1, 7, 11)
    mask[2, :, :3] = hide
    output, attention = read(Attention(), q, k, v, {"attention_mask": mask}, slice(None), slice(None))
    assert (attention[2, :3] == 0).all()
    torch.testing.assert_close(attention[2, 3:].sum(-1), torch.ones(4))
    assert output.isfinite().all()
    expected, _ = sdpa_attention_forward(Attention(), q, k, v, mask)
    assert torch.equal(output, expected)


@pytest.mark.parametrize("kind", MASKS)
def test_without_a_kernel_that_gives_its_log_sum_exp_the_result_is_the_same(
    kind: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(blocks, "fused_attention", lambda *_: None)
    monkeypatch.setattr(blocks, "BLOCK", 1000)
    is_causal = kind.endswith("causal")
    queries, keys = (T, T) if is_causal else (T, 71)
    q, k, v = tensors(6, 2, queries, keys)
    masks = masking(kind, 6, queries, keys)
    output, attention = read(Attention(3, is_causal), q, k, v, masks, slice(17, 60), slice(3, 40))
    weights = reference(q, k, masks, is_causal)[:, :, 17:60, 3:40]
    torch.testing.assert_close(attention.double(), weights.mean(1), rtol=0, atol=1e-6)
    expected, _ = sdpa_attention_forward(
        Attention(3, is_causal), q, k, v, **{"attention_mask": None, **masks}
    )
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-6)


def test_values_of_another_width_are_read_too():
    q, k, _ = tensors(5, 5, T, 71)
    value = torch.randn(N, 5, 71, 13)
    output, attention = read(Attention(), q, k, value, {}, slice(None), slice(None))
    weights = reference(q, k, {}, False)
    torch.testing.assert_close(attention.double(), weights.mean(1), rtol=0, atol=1e-6)
    torch.testing.assert_close(output.double(), (weights @ value.double()).transpose(1, 2), rtol=0, atol=1e-5)


def test_trap_12_bfloat16_inputs_are_read_with_a_log_sum_exp_of_float32():
    q, k, v = (x.bfloat16() for x in tensors(6, 2, T, 71))
    masks = masking("bool", 6, T, 71)
    _, attention = read(Attention(3), q, k, v, masks, slice(None), slice(None))
    assert attention.dtype == torch.float32
    weights = reference(q, k, masks, False)
    # The kernel's bfloat16 path sums its exponentials less exactly; bfloat16 weights would be off by 1e-3.
    torch.testing.assert_close(attention.double(), weights.mean(1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("block", [1, 500, 1 << 30])
def test_the_size_of_a_block_changes_nothing(block: int, monkeypatch: pytest.MonkeyPatch):
    q, k, v = tensors(5, 5, 7, 13)
    masks = masking("bias and bool", 5, 7, 13)
    monkeypatch.setattr(blocks, "BLOCK", block)
    _, attention = read(Attention(), q, k, v, masks, slice(None), slice(None))
    weights = reference(q, k, masks, False)
    torch.testing.assert_close(attention.double(), weights.mean(1), rtol=0, atol=1e-6)


def test_two_modules_are_averaged_and_a_hand_computed_value_comes_out():
    """Keys 0 and log 3 under one query of 1: softmax (1/4, 3/4); with query 0: (1/2, 1/2)."""
    sharp, flat = Attention(), Attention()
    key = torch.tensor([1.0, 3.0]).log().view(1, 1, 2, 1)
    with torch.no_grad(), capture(Readable("causal", (sharp, flat), (0, 1), 2)) as reading:
        attention_forward(sharp, torch.ones(1, 1, 1, 1), key, key, None, scaling=1.0)
        attention_forward(flat, torch.zeros(1, 1, 1, 1), key, key, None, scaling=1.0)
    torch.testing.assert_close(reading.attention, torch.tensor([[[0.375, 0.625]]]))


def test_scaling_given_by_the_model_is_used():
    q, k, v = tensors(5, 5, 7, 11)
    _, attention = read(Attention(), q, k, v, {}, slice(None), slice(None), scaling=0.5)
    expected = (q.double() @ k.double().transpose(-1, -2) * 0.5).softmax(-1).mean(1)
    torch.testing.assert_close(attention.double(), expected, rtol=0, atol=1e-6)


def test_trap_06_later_keys_of_a_static_cache_are_never_seen():
    q, k, v = tensors(5, 5, 7, 11)
    module = Attention(is_causal=True)
    output, attention = read(module, q, k, v, {}, slice(None), slice(0, 5))
    expected, _ = sdpa_attention_forward(module, q, k, v, None)
    assert torch.equal(output, expected)
    weights = reference(q, k[:, :, :7], {}, True)[:, :, :, :5]
    torch.testing.assert_close(attention.double(), weights.mean(1), rtol=0, atol=1e-6)


def test_a_single_query_of_a_causal_module_sees_every_key():
    """As in a decoding step over a cache."""
    q, k, v = tensors(5, 5, 1, 11)
    module = Attention(is_causal=True)
    output, attention = read(module, q, k, v, {}, slice(None), slice(None))
    assert torch.equal(output, sdpa_attention_forward(module, q, k, v, None)[0])
    torch.testing.assert_close(attention.double(), reference(q, k, {}, False).mean(1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("rows", [slice(0, 8), slice(7, None), slice(0, 7, 2), slice(3, 3)])
def test_positions_that_the_model_did_not_see_are_an_error(rows: slice):
    q, k, v = tensors(5, 5, 7, 11)
    with pytest.raises(RuntimeError, match="the model saw 7"):
        read(Attention(), q, k, v, {}, rows, slice(None))
