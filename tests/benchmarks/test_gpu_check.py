"""What `make gpu-check` runs on a GPU, run here on tiny shapes; its page is the one that is committed."""

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch

import forked
from benchmarks.gpu import check, cost, exact
from benchmarks.gpu import page as pages

ROOT = Path(__file__).parents[2]
GPU = torch.device("cuda:0")  # named, never used
CASE = {
    "dtype": "float32",
    "heads": "6/2",
    "case": "causal",
    "sdpa": "flash",
    "by": "kernel",
    "difference": 1e-7,
    "torch_path": 2e-7,
    "limit": 1e-5,
}


def test_the_committed_page_says_what_was_found_or_that_nothing_was():
    figures = ROOT / "docs" / "gpu.json"
    found = json.loads(figures.read_text(encoding="utf-8")) if figures.exists() else None
    assert (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8") == pages.page(found)


def test_without_a_gpu_it_says_so_and_measures_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check.main(["--output", str(tmp_path / "docs")]) == 2
    said = capsys.readouterr()
    assert said.err == "gpu-check needs a CUDA GPU and a CUDA build of torch; nothing was measured.\n"
    assert said.out == ""
    assert not (tmp_path / "docs").exists()


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> Path:
    """Of the whole program on this CPU."""
    directory = tmp_path_factory.mktemp("gpu")
    arguments = ["--device", "cpu", "--output", directory]
    checked = forked.start(partial(forked.module, "benchmarks.gpu.check", arguments), ROOT)
    assert checked.wait() == 0, checked.err
    return directory


def test_every_piece_is_measured(output):
    found = json.loads((output / "gpu.json").read_text(encoding="utf-8"))
    assert found["versions"]["torch"] == torch.__version__
    assert found["kernel"] == {"float32": False, "bfloat16": False}
    cases = {(case["dtype"], case["heads"], case["case"]) for case in found["correctness"]}
    assert len(cases) == len(found["correctness"]) == 2 * 2 * 3
    # Processors without products of bfloat16 round elsewhere: 5e-5 with AVX2, below 1e-6 with AVX512.
    most = {"float32": 1e-6, "bfloat16": 1e-4}
    assert all(0 < case["difference"] < most[case["dtype"]] for case in found["correctness"])
    passes = {(case["dtype"], case["prompt"], case["response"], case["layers"]) for case in found["overhead"]}
    assert len(passes) == len(found["overhead"]) == 2 * 1 * 2
    assert {case["what"] for case in found["sharing"]} == {"observe", "differentiate"}
    assert all(case["possible"] and case["difference"] < 1e-6 for case in found["sharing"])
    for case in (*found["overhead"], *found["sharing"]):
        assert all(way["milliseconds"] > 0 and way["mebibytes"] is None for way in case["ways"].values())
        assert next(iter(case["ways"].values()))["times"] == [1, 1, 1]
    kinds = {(step["architecture"], step["precision"]) for step in found["steps"]}
    assert kinds == {("llama", "no"), ("llama", "bf16"), ("t5", "no"), ("t5", "bf16")}
    for step in found["steps"]:
        assert math.isfinite(step["loss"])
        assert step["grad_norm"] > 0
        assert step["tokens"] > 6


def test_the_page_has_every_row(output):
    found = json.loads((output / "gpu.json").read_text(encoding="utf-8"))
    page = (output / "gpu.md").read_text(encoding="utf-8")
    assert page == pages.page(found)
    ways = [way for case in (*found["overhead"], *found["sharing"]) for way in case["ways"]]
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(rows) == len(found["correctness"]) + len(ways) + len(found["steps"]) + 2 * 4


@pytest.mark.parametrize(
    ("changed", "agrees"),
    [
        ({}, True),
        ({"difference": 1e-5}, True),
        ({"difference": 2e-5}, False),
        ({"torch_path": 2e-5}, False),
        ({"difference": math.nan}, False),
        ({"torch_path": math.nan}, False),
    ],
)
def test_a_case_that_disagrees_fails_the_check_and_is_said(changed, agrees, tmp_path, monkeypatch):
    found = {**pages.about(torch.device("cpu")), "kernel": {}, "correctness": [CASE | changed]}
    found |= {"overhead": [], "sharing": [], "steps": []}
    monkeypatch.setattr(check, "check", lambda *_: found)
    assert check.main(["--device", "cpu", "--output", str(tmp_path)]) == (0 if agrees else 1)
    assert ("1 cases are beyond their limit" in (tmp_path / "gpu.md").read_text()) is not agrees


def test_the_definition_is_hand_computed_and_a_row_that_sees_nothing_is_zero():
    """Queries of 1 and keys of 0, log 3 and log 4: weights of (1, 3, 4) over what each sees."""
    query = torch.ones(1, 1, 3, 1)
    key = torch.tensor([1.0, 3.0, 4.0]).log().view(1, 1, 3, 1)
    causal = exact.Case("causal", query, key, key, {}).exact()
    expected = torch.tensor([[[1, 0, 0], [1 / 4, 3 / 4, 0], [1 / 8, 3 / 8, 4 / 8]]]).double()
    torch.testing.assert_close(causal, expected, rtol=0, atol=1e-7)
    seen = torch.tensor([[0, 0, 0], [0, 1, 0], [0, 1, 1]]).bool()
    bias = torch.tensor([[0.0, 0, 0], [0, 0, 0], [0, 0, math.log(2)]])
    masks = {"attention_mask": seen[None, None], "position_bias": bias[None, None]}
    padded = exact.Case("padded", query, key, key, masks).exact()
    expected = torch.tensor([[[0, 0, 0], [0, 1, 0], [0, 3 / 11, 8 / 11]]]).double()
    torch.testing.assert_close(padded, expected, rtol=0, atol=1e-7)


def test_ratios_are_taken_within_a_round(monkeypatch):
    durations = {"a": iter([2.0, 4.0, 1.0]), "b": iter([3.0, 4.0, 2.0])}
    monkeypatch.setattr(cost, "milliseconds", lambda work, _: next(durations[work()]))
    found = cost.compared({"a": lambda: "a", "b": lambda: "b"}, torch.device("cpu"), rounds=3)
    assert found == {
        "a": {"milliseconds": 2.0, "times": [1.0, 1.0, 1.0], "mebibytes": None},
        "b": {"milliseconds": 3.0, "times": [1.5, 1.0, 2.0], "mebibytes": None},
    }


def test_on_a_gpu_events_and_the_allocator_are_asked(monkeypatch):
    said = []

    class Event:
        def __init__(self, enable_timing: bool):
            assert enable_timing

        def record(self) -> None:
            said.append("record")

        def elapsed_time(self, end: "Event") -> float:
            return 7.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: said.append("synchronize"))
    assert cost.milliseconds(lambda: said.append("work"), GPU) == 7.0
    assert said == ["record", "work", "record", "synchronize"]

    said.clear()
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: said.append("reset"))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 3 * 2**20)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 8 * 2**20)
    assert cost.peak(lambda: said.append("work"), GPU) == 5.0
    assert said == ["synchronize", "reset", "work"]
