"""The Triton kernel, run on the CPU by Triton's interpreter, against the torch path and the softmax itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
import torch
from torch import Tensor

from cagsr.attention import blocks, by_piece, capture, inspect
from cagsr.attention.call import AttentionCall
from cagsr.attention.naive import naive_looks, piece_weights
from cagsr.attention.reading import Reading

pytest.importorskip("triton", reason="Triton is made for Linux alone")

import numpy as np
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from cagsr.attention import kernel

N, T, S = 2, 67, 41  # more than one tile of 32 or 64 rows, and none of them full
BIASES = ["none", "of columns", "of rows", "of heads", "of all", "expanded"]


@pytest.fixture(autouse=True)
def bfloat16_products(monkeypatch: pytest.MonkeyPatch):
    """The interpreter keeps bfloat16 as 16 bits of an integer, and multiplies them as such."""
    product = InterpreterBuilder.create_dot

    def of_floats(self, a, b, *rest):
        return product(self, *(_as_float(each) for each in (a, b)), *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", of_floats)


def _as_float(handle: TensorHandle) -> TensorHandle:
    if handle.data.dtype != np.uint16:
        return handle
    return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), kernel.tl.float32)


def within_nan(tensor: Tensor) -> Tensor:
    """The same numbers, with NaN before and after each of their rows: who reads too far gets it."""
    around = torch.full((*tensor.shape[:-2], tensor.shape[-2] + 5, tensor.shape[-1] + 7), torch.nan)
    around = around.to(tensor.dtype)
    inner = around[..., 2:-3, 3:-4]
    return inner.copy_(tensor)


def inputs(heads: int, groups: int, width: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    torch.manual_seed(5)
    query = torch.randn(N, heads, T, width).to(dtype)
    key = torch.randn(N, groups, S, width).to(dtype)
    return within_nan(query), within_nan(key)


def biasing(kind: str, heads: int) -> Tensor | None:
    shape = {
        "none": None,
        "of columns": (1, 1, T, S),
        "of rows": (N, 1, T, S),
        "of heads": (1, heads, T, S),
        "of all": (N, heads, T, S),
        "expanded": (N, 1, 1, S),
    }[kind]
    if shape is None:
        return None
    bias = torch.randn(shape).masked_fill(torch.rand(shape) < 0.3, -torch.inf)
    return within_nan(bias).expand(-1, -1, T, -1)


def scores(query: Tensor, key: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """[N H T S] float64."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    found = query.double() @ key.double().mT * scale
    return found if bias is None else found + bias.double()


def agrees(query: Tensor, key: Tensor, bias: Tensor | None, scale: float = 0.3) -> None:
    """With float64, and with the torch path; on top of what the total held, and on nothing beside it."""
    heads = query.shape[1]
    shares = [0.0 if head == 1 else (head + 2) / 37 for head in range(heads)]
    exact = scores(query, key, bias, scale)
    # As if as much lay in keys that are not read.
    lse = within_nan(exact.logsumexp(-1).float() + 0.7)
    around = torch.rand(N, T + 5, S + 7)
    before = around.clone()
    kernel.add_attention(around[:, 2:-3, 3:-4], query, key, lse, bias, scale, shares)
    added = (around - before)[:, 2:-3, 3:-4]
    expected = torch.einsum(
        "nhts,h->nts", (exact - lse[..., None].double()).exp(), torch.tensor(shares).double()
    )
    torch.testing.assert_close(added.double(), expected, rtol=0, atol=1e-6 * max(1, sum(shares)))
    by_torch = torch.zeros(N, T, S)
    blocks.add_attention(by_torch, query, key, lse, bias, scale, shares)
    torch.testing.assert_close(added, by_torch, rtol=0, atol=1e-6)
    before[:, 2:-3, 3:-4] = around[:, 2:-3, 3:-4]
    assert torch.equal(around, before)


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize(("heads", "groups"), [(5, 5), (6, 2), (7, 1)])
def test_trap_11_the_kernel_agrees_with_float64_and_with_the_torch_path(heads: int, groups: int, bias: str):
    query, key = inputs(heads, groups, 13)
    agrees(query, key, biasing(bias, heads))


@pytest.mark.parametrize("bias", ["none", "of rows"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_summed_in_float32(dtype: torch.dtype, bias: str):
    query, key = inputs(6, 2, 37, dtype)
    agrees(query, key, biasing(bias, 6))


def test_attention_is_read_by_piece(monkeypatch: pytest.MonkeyPatch):
    """In bands of 23 columns: a whole one and a part."""
    query, key = inputs(6, 2, 13)
    bias = biasing("of rows", 6)
    lse = scores(query, key, bias, 0.3).logsumexp(-1).float()
    pieces = torch.zeros(N, 3, S, dtype=torch.bool)
    pieces[0, 0, 3:29], pieces[0, 1, 40], pieces[1, 2, ::7] = True, True, True
    monkeypatch.setattr(by_piece, "BAND", 23)
    monkeypatch.setattr(by_piece, "add_attention", kernel.add_attention)
    reader, shares = by_piece.ByPiece(pieces, by_token=True), [0.0, 0.3, 0.1, 0.2, 0.0, 0.4]
    reader.add(AttentionCall(torch.nn.Identity(), query, key, key, 0.3, mask=bias), lse, shares)
    expected = torch.zeros(N, T, S)
    blocks.add_attention(expected, query, key, lse, bias, 0.3, shares)
    torch.testing.assert_close(reader.found["attention"], expected, rtol=0, atol=1e-6)
    looks = naive_looks(expected, piece_weights(pieces))
    torch.testing.assert_close(reader.found["looks"], looks, rtol=0, atol=1e-6)


@pytest.mark.parametrize("width", [1, 16, 127])
def test_heads_of_any_width_are_read(width: int):
    query, key = inputs(3, 3, width)
    agrees(query, key, None, width**-0.5)


@pytest.mark.parametrize("dtype", kernel.DTYPES)
def test_a_row_that_sees_no_key_adds_nothing(dtype: torch.dtype):
    """Whatever its log-sum-exp is: of a mask of -inf, as flash gives it, and of the dtype's own lowest number."""
    query, key = inputs(5, 5, 13, dtype)
    lowest = torch.finfo(dtype).min
    bias = torch.zeros(N, 1, T, S)
    bias[:, :, :2] = -torch.inf
    bias[:, :, 2] = lowest
    lse = scores(query, key, bias, 1.0).logsumexp(-1).float()
    lse[:, :, 1] = torch.inf
    assert (lse[:, :, 0] == -torch.inf).all()
    assert (lse[:, :, 2] < 0.9 * lowest).all()
    total = torch.rand(N, T, S)
    before = total.clone()
    kernel.add_attention(total, query, key, lse, bias, 1.0, [0.2] * 5)
    assert torch.equal(total[:, :3], before[:, :3])
    torch.testing.assert_close((total - before)[:, 3:].sum(-1), torch.ones(N, T - 3))


def test_tensors_whose_last_axis_is_not_contiguous_are_read_and_written():
    def turned(tensor: Tensor) -> Tensor:
        return tensor.mT.contiguous().mT

    query, key = inputs(6, 2, 13)
    bias, total = turned(biasing("of all", 6)), turned(torch.zeros(N, T, S))
    lse = turned(scores(query, key, bias, 0.3).logsumexp(-1).float())
    kernel.add_attention(total, turned(query), turned(key), lse, bias, 0.3, [1 / 6] * 6)
    torch.testing.assert_close(total.sum(-1), torch.ones(N, T))
    expected = torch.zeros(N, T, S)
    blocks.add_attention(expected, query, key, lse, bias, 0.3, [1 / 6] * 6)
    torch.testing.assert_close(total, expected, rtol=0, atol=1e-6)


def read(name: str, prompts: list[int], responses: list[int]) -> Tensor:
    model = tiny_models.build(name)
    rows, columns = tiny_models.positions(name)
    with torch.no_grad(), capture(inspect(model), rows, columns) as reading:
        model(**tiny_models.batch(name, prompts, responses))
    return reading.attention


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_model_is_read_by_the_kernel_as_by_the_torch_path(name: str, monkeypatch: pytest.MonkeyPatch):
    expected = read(name, [11, 3, 7], [7, 5, 2])
    calls = []

    def by_kernel(*arguments):
        calls.append(arguments[1].shape)
        kernel.add_attention(*arguments)

    monkeypatch.setitem(Reading.add.__globals__, "add_attention", by_kernel)
    torch.testing.assert_close(read(name, [11, 3, 7], [7, 5, 2]), expected, rtol=0, atol=1e-6)
    assert len(calls) >= 2


def test_the_kernel_compiles_without_a_gpu_and_keeps_everything_in_registers(tmp_path: Path):
    """Shared memory of 99 KB is what the smallest GPUs since compute capability 8.0 give to one block."""
    output = subprocess.check_output(
        [sys.executable, Path(__file__).with_name("compile_kernel.py")],
        text=True,
        env=os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)},
    )
    found = [json.loads(line) for line in output.splitlines()]
    assert len(found) == 6
    assert [each for each in found if each["stack"] > 0 or each["shared"] > 99 * 1024] == []
    assert all(each["reused"] for each in found), "a batch of other lengths is compiled for anew"
