"""The kernel is used where it works, and whoever has a GPU where it does not is told and goes on."""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import forked
from cagsr.attention import blocks
from cagsr.attention import dispatch as kernel_choice
from cagsr.attention.dispatch import SHARES, add_attention, kernel_works

pytest.importorskip("triton", reason="Triton is made for Linux alone")

from cagsr.attention import kernel

HERE = torch.device("cpu")  # where Triton interprets; `kernel_works` does not ask which kind of device it is


@pytest.fixture(autouse=True)
def a_new_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    kernel_works.cache_clear()
    yield
    kernel_works.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_kernel_that_agrees_with_the_torch_path_works(dtype: torch.dtype):
    assert kernel_works(HERE, dtype, 20)


def test_it_is_tried_once(monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr(kernel_choice, "_difference", lambda *given: calls.append(given) or 0.0)
    assert kernel_works(HERE, torch.float32, 20)
    assert kernel_works(HERE, torch.float32, 20)
    assert len(calls) == 1


def test_a_compiler_that_fails_is_named_and_the_torch_path_taken(monkeypatch: pytest.MonkeyPatch):
    def fail(*_):
        raise RuntimeError("Failed to find C compiler.")

    monkeypatch.setattr(kernel, "add_attention", fail)
    with pytest.warns(RuntimeWarning, match=r"takes longer: RuntimeError: Failed to find C compiler\."):
        assert not kernel_works(HERE, torch.float32, 20)


@pytest.mark.parametrize("wrong", [0.001, torch.nan, torch.inf])
def test_a_kernel_that_computes_something_else_is_not_used(wrong: float, monkeypatch: pytest.MonkeyPatch):
    right = kernel.add_attention

    def off(total, *rest):
        right(total, *rest)
        total[1, 66, 70] += wrong

    monkeypatch.setattr(kernel, "add_attention", off)
    with pytest.warns(RuntimeWarning, match="beside that of the torch path"):
        assert not kernel_works(HERE, torch.float32, 20)


def test_reading_attention_imports_no_triton_before_there_is_a_use_for_it(tmp_path: Path):
    """Torch and transformers import it where it is installed; we do without."""
    code = (
        "import forked, sys; forked.forget('cagsr', 'triton'); sys.modules['triton'] = None; "
        "import cagsr.attention; print('cagsr.attention.kernel' in sys.modules)"
    )
    started = forked.start(partial(exec, code), tmp_path)
    assert (started.wait(), started.out, started.err) == (0, "False\n", "")


def test_without_triton_nothing_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert not kernel_works(HERE, torch.float32, 20)


@pytest.mark.parametrize(
    ("dtype", "width", "capability"),
    [(torch.float64, 20, (8, 0)), (torch.float32, 257, (8, 0)), (torch.float32, 20, (7, 5))],
)
def test_what_the_kernel_does_not_take_is_left_to_the_torch_path(
    dtype: torch.dtype, width: int, capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert not kernel_works(HERE, dtype, width)


@pytest.mark.parametrize(
    ("device", "works", "taken"), [("cuda", True, "kernel"), ("cuda", False, "torch"), ("cpu", True, "torch")]
)
def test_tensors_on_cuda_go_to_the_kernel(
    device: str, works: bool, taken: str, monkeypatch: pytest.MonkeyPatch
):
    calls = []
    monkeypatch.setattr(kernel_choice, "kernel_works", lambda *_: works)
    monkeypatch.setattr(kernel, "add_attention", lambda *given: calls.append(("kernel", *given)))
    monkeypatch.setattr(blocks, "add_attention", lambda *given: calls.append(("torch", *given)))
    with FakeTensorMode():  # tensors of any device, without data
        total, query = torch.empty(2, 3, 5, device=device), torch.empty(2, 7, 3, 11, device=device)
    add_attention(total, query, query, total, None, 0.3, SHARES)
    assert calls == [(taken, total, query, query, total, None, 0.3, SHARES)]
