"""The proofs of promises 10, 11, 12 and 15 at a small count, and that each of them can fail."""

import os
from random import Random

import pytest
from markupsafe import Markup
from torch import Tensor

import agreement
import architectures
import inert_report
import safety
import secrets_and_paths
from browser import browser, installed
from cagsr.report import page as report_page


def counted(proof, count: int) -> list[str]:
    """The failures of a proof, which advanced once an item."""
    steps: list[None] = []
    failures = proof.prove(count, Random(5), lambda **_: steps.append(None))
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
def test_models_compute_among_others_what_they_compute_alone_or_are_refused():
    assert counted(agreement, 12) == []


@pytest.mark.filterwarnings("ignore")
def test_a_score_that_is_a_little_off_is_found(monkeypatch: pytest.MonkeyPatch):
    exact = agreement.Policy.logprobs
    monkeypatch.setattr(agreement.Policy, "logprobs", lambda *given: exact(*given) * 1.01)
    monkeypatch.setattr(agreement.shrunken, "NAMES", ["llama"])
    monkeypatch.setattr(agreement, "COUNT", 1)
    monkeypatch.setattr(agreement, "TABLE", agreement.Path(os.devnull))
    (failure,) = counted(agreement, 1)
    assert failure.startswith("llama: off by ")


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


@pytest.mark.filterwarnings("ignore")
def test_names_stay_inside_and_secrets_outside():
    assert counted(secrets_and_paths, 60) == []


def test_a_name_that_gets_out_is_found(monkeypatch: pytest.MonkeyPatch):
    def careless(name: str, run) -> None:
        (run / name).write_text("here")

    monkeypatch.setattr(secrets_and_paths, "SINKS", {"careless": careless})
    assert secrets_and_paths.escapes("../two") == ["careless: wrote outside the run directory"]
    assert secrets_and_paths.escapes("../link/bystander.txt") == ["careless: wrote outside the run directory"]
    assert secrets_and_paths.escapes("a\0b") == [
        "careless: no plain message but ValueError: embedded null byte"
    ]
    assert secrets_and_paths.escapes("inside") == []


@pytest.mark.parametrize("place", ["file", "output"])
def test_a_secret_that_gets_in_is_found(place: str, monkeypatch: pytest.MonkeyPatch):
    def careless(directory, variables: dict[str, str]) -> str:
        for name in ("run.json", "model/README.md"):
            path = directory / "run" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(str(variables) if place == "file" else "")
        return "" if place == "file" else str(variables)

    monkeypatch.setattr(secrets_and_paths, "_train", careless)
    found = secrets_and_paths.leaks({"HF_TOKEN": "canary0", "WANDB_API_KEY": "canary1"})
    expected = ["run/run.json", "run/model/README.md"] if place == "file" else ["what train printed"]
    assert {name: sorted(where) for name, where in found.items()} == dict.fromkeys(
        ("HF_TOKEN", "WANDB_API_KEY"), sorted(expected)
    )


with_browser = pytest.mark.skipif(installed() is None, reason="no Chromium here to open reports in")


@with_browser
def test_reports_are_inert():
    assert counted(inert_report, 150) == []


@with_browser
@pytest.mark.parametrize(
    "careless", ["a template without escapes", "a script that makes markup", "data as it is"]
)
def test_a_report_that_is_not_inert_is_found(careless: str, monkeypatch: pytest.MonkeyPatch):
    if careless == "a template without escapes":
        monkeypatch.setattr(report_page, "visible", Markup)
    elif careless == "a script that makes markup":
        joined = report_page._joined
        text_nodes, markup = "element.append(...", "((...all) => (element.innerHTML += all.join('')))(..."

        def altered(folder: str, *parts) -> str:
            return joined(folder, *parts).replace(text_nodes, markup)

        monkeypatch.setattr(report_page, "_joined", altered)
    else:
        monkeypatch.setattr(report_page, "_json", inert_report.json.dumps)
    fields = ("candidate's response", "identity", "warning", "pair's prompt")
    dealt = {n: (field, f"</script><img src=x onerror=canary({n})>") for n, field in enumerate(fields)}
    with browser() as started:
        assert inert_report.outcome(started, dealt)


@with_browser
def test_a_script_that_runs_is_named(monkeypatch: pytest.MonkeyPatch):
    """The canary is real: without a policy and without escapes the script runs and its request is seen."""
    monkeypatch.setattr(report_page, "visible", Markup)
    monkeypatch.setattr(report_page, "_policy", lambda *_: "default-src * 'unsafe-inline'")
    monkeypatch.setattr("cagsr.report.facts.visible", Markup)
    text = "<script>canary(7)</script><img src='https://canary.invalid/7'>"
    with browser() as started:
        found = inert_report.outcome(started, {7: ("warning", text)})
    assert found[0].startswith("ran 7 in warning: <script>")
    assert "asked for https://canary.invalid/7" in found


@pytest.mark.parametrize("field", inert_report.FIELDS)
def test_what_is_attacked_is_on_the_page(field: str, tmp_path):
    runs = inert_report._made(tmp_path, {1: (field, "canary4711")})
    assert "canary4711" in report_page.render(report_page.read_runs(runs))
