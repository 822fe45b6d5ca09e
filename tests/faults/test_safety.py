"""The proofs of promises 10, 11 and 15 at a small count, and that each of them can fail."""

from random import Random

import architectures
import pytest
from torch import Tensor


def counted(proof, count: int) -> list[str]:
    """The failures of a proof, which advanced once an item."""
    steps: list[None] = []
    failures = proof.prove(count, Random(5), lambda: steps.append(None))
    assert len(steps) == min(count, proof.COUNT)
    return failures


@pytest.mark.filterwarnings("ignore")
def test_attention_is_real_or_refused():
    assert counted(architectures, 20) == []


@pytest.mark.filterwarnings("ignore")
def test_attention_that_is_a_little_off_is_found(monkeypatch: pytest.MonkeyPatch):
    exact = architectures.naive_attention

    def off(*arguments) -> Tensor:
        return exact(*arguments) * 1.001

    monkeypatch.setattr(architectures, "naive_attention", off)
    failures = counted(architectures, 6)
    assert any(failure.startswith("t5: silently wrong by") for failure in failures)


@pytest.mark.filterwarnings("ignore")
def test_a_refusal_that_is_not_written_down_is_found(monkeypatch: pytest.MonkeyPatch):
    def refuse(model):
        raise architectures.UnsupportedModelError(f"{model.config.model_type}: no")

    monkeypatch.setattr(architectures, "inspect", refuse)
    assert "t5: refused: t5: no" in counted(architectures, 6)
