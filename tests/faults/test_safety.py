"""The proofs of promises 10, 11 and 15 at a small count, and that each of them can fail."""

from random import Random

import architectures
import pytest
import safety
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


@pytest.mark.filterwarnings("ignore")
def test_no_code_of_an_artifact_runs():
    assert counted(safety, safety.COUNT) == []


@pytest.mark.parametrize(
    ("run", "problem"),
    [
        (lambda place, code: exec(code), "its code ran (not refused)"),
        (lambda place, code: None, "not refused"),
        (lambda place, code: 1 / 0, "no plain message but ZeroDivisionError: division by zero"),
    ],
)
def test_code_that_runs_or_is_not_refused_plainly_is_found(
    run, problem: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(safety, "ATTACKS", (safety.Attack("planted", run),) * safety.COUNT)
    assert counted(safety, 2) == [f"planted: {problem}"] * 2


@pytest.mark.filterwarnings("ignore")
def test_a_payload_runs_once_its_guard_is_gone(monkeypatch: pytest.MonkeyPatch):
    """The canary is real: with the code of a model allowed, the attack on the policy succeeds."""
    loads = safety.load_model
    monkeypatch.setattr(safety, "load_model", lambda name: loads(name, trust_remote_code=True))
    attack = next(each for each in safety.ATTACKS if each.name == "policy: a model type in code beside it")
    assert safety.outcome(attack).startswith("its code ran")
