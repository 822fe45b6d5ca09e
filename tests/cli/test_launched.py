"""Started by torchrun or accelerate launch: what shares its work does, the rest says that it runs alone."""

import json
from functools import partial

import pytest

import forked

ALONE = {
    "calibrate": ["--output=out.yaml", "data.task=slots"],
    "compare": ["data.task=slots", "compare.directory=out"],
    "demo": ["--directory=out"],
    "plan": ["data.task=slots"],
    "rate": ["out", "--raters=anna"],
    "report": ["out"],
    "score": ["pairs.jsonl", "--output=out"],
}
SHARED = {
    "eval": ["base=nowhere", "data.task=slots"],
    "probe": ["data.task=slots", "model.name=nowhere"],
    "sft": ["data.task=slots", "model.name=nowhere", "sft.directory=out"],
    "train": ["data.task=slots", "model.name=nowhere", "run.directory=out"],
}


@pytest.mark.parametrize("command", sorted(ALONE))
def test_a_command_that_runs_alone_says_so_before_it_does_anything(cagsr, tmp_path, monkeypatch, command):
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = cagsr(command, *ALONE[command])
    assert refused.code == 2
    assert (
        f"cagsr {command} runs as one process, and 2 were launched. Start it without torchrun" in refused.err
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", sorted(SHARED))
def test_processes_that_do_not_see_each_other_are_refused_with_the_mend(
    cagsr, tmp_path, monkeypatch, command
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = cagsr(command, *SHARED[command])
    assert refused.code == 2
    assert "Set ACCELERATE_USE_CPU=1 to run them together on CPUs" in refused.err
    assert list(tmp_path.iterdir()) == []


def test_a_probe_by_two_processes_finds_what_one_finds_and_says_it_once(cagsr, models, small, tmp_path):
    arguments = ["probe", *small, "data.task=slots", f"model.name={models / 't5'}", "--prompts=3", "--json"]
    started = forked.start_two(partial(forked.cagsr, arguments), tmp_path, {"ACCELERATE_USE_CPU": "1"})
    forked.wait_for_both(started)
    together, alone = (
        json.loads("".join(process.out for process in started)),
        json.loads(cagsr(*arguments).out),
    )
    assert together["base"] == pytest.approx(alone["base"], abs=1e-5)
    assert together["verdict"] == alone["verdict"]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "gradient_accumulation_steps is 4"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "mixed_precision is bf16"),
        ("ACCELERATE_MIXED_PRECISION", "fp16", "mixed_precision is fp16"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "dynamo_backend is INDUCTOR"),
    ],
)
@pytest.mark.parametrize("command", sorted({**SHARED, **ALONE}.keys() - {"plan", "rate", "report"}))
def test_a_launchers_precision_accumulation_and_compilation_are_never_passed_over(
    cagsr, models, small, rows, monkeypatch, command, name, value, said
):
    rows("pairs.jsonl", {"prompt": "a", "response": "b"})
    arguments = {**SHARED, **ALONE}[command]
    arguments = [argument.replace("nowhere", str(models / "llama")) for argument in arguments]
    if command in ("calibrate", "compare", "score"):
        arguments += [f"model.name={models / 'llama'}", *small]
    monkeypatch.setenv(name, value)
    refused = cagsr(command, *arguments)
    assert refused.code == 2, refused.out + refused.err
    assert f"accelerate launch: {said} ({name})" in " ".join(refused.err.split())


def test_what_the_launcher_and_the_run_both_say_is_done(train, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    assert train("train.mixed_precision=bf16", "train.steps=1").code == 0
