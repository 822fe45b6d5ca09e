"""Where the log-sum-exp comes from: on CUDA, as far as can be seen without one.

Torch's own declarations of the CUDA kernels run on tensors without data, and tell which calls they take and which
shapes they return; numbers come from stand-ins that return what those kernels do, paddings included.
"""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend

from cagsr.attention import sdpa_lse as fused
from cagsr.attention.call import AttentionCall
from cagsr.attention.sdpa_lse import _on_cuda, fused_attention

N, Q, K, D = 2, 37, 41, 20  # not a multiple of 8, 16 or 32
SCALE = 0.3
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}


def tensors(heads: int = 6, groups: int = 6, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Laid out as transformers hands them over."""
    torch.manual_seed(3)
    query = torch.randn(N, Q, heads, D, device=device).transpose(1, 2)
    key, value = torch.randn(2, N, K, groups, D, device=device).transpose(2, 3)
    return query, key, value


def call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None = None,
    is_causal: bool = False,
    dropout=0.0,
) -> AttentionCall:
    return AttentionCall(nn.Module(), query, key, value, SCALE, bias, dropout=dropout, is_causal=is_causal)


def chosen(monkeypatch: pytest.MonkeyPatch, backend: SDPBackend) -> list[tuple]:
    """Torch's answer to which kernel it would take, and with what it was asked."""
    asked = []
    monkeypatch.setattr(fused, "_choice", lambda *given: asked.append(given) or backend.value)
    return asked


@pytest.mark.parametrize(
    ("name", "biased"),  # flash is never chosen with a bias
    [("flash", False), ("efficient", False), ("efficient", True), ("cudnn", False), ("cudnn", True)],
)
def test_the_kernels_take_what_they_are_given_and_return_output_and_log_sum_exp(
    name: str, biased: bool, monkeypatch: pytest.MonkeyPatch
):
    chosen(monkeypatch, KERNELS[name])
    query, key, value = (each.bfloat16() for each in tensors(device="meta"))
    bias = torch.zeros(N, 1, 1, K, dtype=torch.bfloat16, device="meta").expand(-1, -1, Q, -1)
    found = _on_cuda(call(query, key, value, bias if biased else None, not biased))
    assert found is not None
    output, lse = found
    assert (output.shape, output.dtype) == ((N, 6, Q, D), torch.bfloat16)
    assert (lse.shape, lse.dtype) == ((N, 6, Q), torch.float32)


def exact(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, is_causal: bool
) -> tuple[Tensor, Tensor]:
    repeats = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(repeats, 1).double() for each in (key, value))
    scores = query.double() @ key.mT * SCALE
    if bias is not None:
        scores = scores + bias
    if is_causal:
        scores = scores.masked_fill(torch.ones(Q, K).triu(1).bool(), -torch.inf)
    return (scores.softmax(-1) @ value).to(query.dtype), scores.logsumexp(-1).float()


def _flash(query, key, value, dropout, is_causal, *, scale):
    assert (dropout, scale, query.shape[-1] % 8) == (0.0, SCALE, 0)
    output, lse = exact(query, key, value, None, is_causal)
    return output, lse, None, None, Q, K, None, None, None


def _efficient(query, key, value, bias, with_lse, dropout, is_causal, *, scale):
    assert (with_lse, dropout, scale, key.shape[1]) == (True, 0.0, SCALE, query.shape[1])
    if bias is not None:
        assert bias.shape == (*query.shape[:3], K)
        assert [stride % 16 for stride in bias.stride()[:-1]] == [0, 0, 0]
        assert bias.stride(-1) == 1
    output, lse = exact(query, key, value, bias, is_causal)
    padded = torch.full((*lse.shape[:2], -(-Q // 32) * 32), torch.nan)
    padded[:, :, :Q] = lse
    return output, padded, None, None


def _cudnn(query, key, value, bias, with_lse, dropout, is_causal, *, scale):
    assert (with_lse, dropout, scale) == (True, 0.0, SCALE)
    output, lse = exact(query, key, value, bias, is_causal)
    return output, lse[..., None], None, None, Q, K, None, None, None


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    ops = {
        f"_scaled_dot_product_{kernel.__name__[1:]}_attention": kernel
        for kernel in (_flash, _efficient, _cudnn)
    }
    monkeypatch.setattr(fused, "aten", SimpleNamespace(**ops))


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("is_causal", [False, True])
def test_trap_12_the_log_sum_exp_is_cut_to_the_queries(
    name: str, is_causal: bool, stand_ins, monkeypatch: pytest.MonkeyPatch
):
    query, key, value = tensors()
    asked = chosen(monkeypatch, KERNELS[name])
    given = call(query, key, value, None, is_causal)
    found = _on_cuda(given)
    torch.testing.assert_close(found, exact(query, key, value, None, is_causal), rtol=0, atol=1e-6)
    assert asked == [(given, False)]


@pytest.mark.parametrize("name", ["efficient", "cudnn"])
@pytest.mark.parametrize("shape", [(N, 1, Q, K), (1, 6, Q, K), (1, 1, Q, 48), (N, 1, 1, K)])
def test_a_bias_of_any_shape_reaches_the_kernel_as_it_wants_it(
    name: str, shape: tuple[int, ...], stand_ins, monkeypatch: pytest.MonkeyPatch
):
    query, key, value = tensors()
    bias = torch.randn(shape)[..., :K].expand(-1, -1, Q, -1)
    chosen(monkeypatch, KERNELS[name])
    found = _on_cuda(call(query, key, value, bias))
    torch.testing.assert_close(found, exact(query, key, value, bias, False), rtol=0, atol=1e-6)


def test_keys_that_heads_share_are_repeated_where_transformers_does(
    stand_ins, monkeypatch: pytest.MonkeyPatch
):
    query, key, value = tensors(groups=2)
    asked = chosen(monkeypatch, KERNELS["flash"])
    found = _on_cuda(call(query, key, value))
    torch.testing.assert_close(found, exact(query, key, value, None, False), rtol=0, atol=1e-6)
    assert (asked[0][0].key.shape[1], asked[0][1]) == (2, True)

    bias = torch.randn(N, 1, Q, K)
    asked = chosen(monkeypatch, KERNELS["efficient"])
    found = _on_cuda(call(query, key, value, bias))
    torch.testing.assert_close(found, exact(query, key, value, bias, False), rtol=0, atol=1e-6)
    assert (asked[0][0].key.shape[1], asked[0][0].value.shape[1], asked[0][1]) == (6, 6, False)


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.OVERRIDEABLE, SDPBackend.ERROR])
def test_a_kernel_that_keeps_its_log_sum_exp_to_itself_is_none(
    backend: SDPBackend, stand_ins, monkeypatch: pytest.MonkeyPatch
):
    chosen(monkeypatch, backend)
    assert _on_cuda(call(*tensors())) is None


def test_dropout_and_other_devices_have_none():
    query, key, value = tensors()
    assert fused_attention(call(query, key, value)) is not None
    assert fused_attention(call(query, key, value, dropout=0.1)) is None
    assert fused_attention(call(query, key, value[..., :13])) is None
    assert fused_attention(call(*tensors(device="meta"))) is None


def test_torch_is_asked_as_sdpa_asks_it():
    query, key, value = tensors(groups=2)
    flash, none = SDPBackend.FLASH_ATTENTION.value, SDPBackend.MATH.value
    assert fused._choice(call(query, key, value, is_causal=True), True) == flash
    with torch.nn.attention.sdpa_kernel(SDPBackend.MATH):
        assert fused._choice(call(query, key, value, is_causal=True), True) == none
