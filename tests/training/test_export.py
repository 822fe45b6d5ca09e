"""`cagsr export`: what was trained, as a program loads it that knows nothing of this package."""

import json
import shutil
import stat
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from cagsr import Config, InputError, train
from cagsr.errors import StorageError
from cagsr.training.export import export
from command_line import typed

KEYS = {
    "model.name": "llama",
    "model.lora": "{r: 3, alpha: 7, target_modules: [q_proj, v_proj]}",
    "data.source": "rows.jsonl",
    "train.steps": 3,
    "train.prompts_per_step": 2,
    "train.micro_batch": 6,
    "train.learning_rate": 0.05,
    "train.save_every": 1,
    "sampling.candidates": 3,
    "sampling.max_new_tokens": 5,
    "reward.preset": "coverage",
    "run.directory": "run",
}
IDS = torch.tensor([[3, 5, 7, 11, 13]])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A directory with ``llama`` and ``run``, three steps of LoRA on it."""
    place = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        tiny.save_models(place)
        rows = [{"prompt": f"city lyon day {day}"} for day in ("monday", "tuesday", "friday")]
        (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        train(
            Config.load(None, [f"{key}={value}" for key, value in KEYS.items()]), console=Console(quiet=True)
        )
    return place


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def logits(directory):
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(directory)(IDS).logits


def test_a_merged_model_is_its_base_and_what_the_adapter_adds(place, monkeypatch, capsys):
    out = typed(["export", "run", "merged"], monkeypatch, capsys)
    assert (out.code, out.out.strip()) == (0, "merged")
    base, adapter, merged = (
        load_file(f"{name}.safetensors")
        for name in ("llama/model", "run/model/adapter_model", "merged/model")
    )
    name = "model.layers.1.self_attn.v_proj"
    a, b = (adapter[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    assert b.abs().max() > 0.01
    torch.testing.assert_close(merged[f"{name}.weight"], base[f"{name}.weight"] + 7 / 3 * b @ a)
    assert torch.equal(merged["model.layers.1.mlp.up_proj.weight"], base["model.layers.1.mlp.up_proj.weight"])
    with torch.no_grad():
        adapted = AutoPeftModelForCausalLM.from_pretrained("run/model")(IDS).logits
    torch.testing.assert_close(logits("merged"), adapted, rtol=1e-4, atol=1e-4)
    assert AutoTokenizer.from_pretrained("merged")("city lyon")["input_ids"]
    card = (place / "merged/README.md").read_text()
    assert "library_name: transformers" in card
    assert "- Files: the whole model\n" in card
    assert "library_name: peft" in (place / "run/model/README.md").read_text()


def test_a_checkpoint_is_the_model_of_its_step(place):
    first, last = sorted((place / "run/checkpoints").iterdir())
    assert (first.name, last.name) == ("step-000002", "step-000003")
    export(f"run/checkpoints/{last.name}", place / "last")
    export(f"run/checkpoints/{first.name}", place / "second")
    export("run", place / "model")
    assert torch.equal(logits("last"), logits("model"))
    assert not torch.allclose(logits("second"), logits("model"), atol=1e-3)
    assert "after 2 steps of grpo, in the manner" in (place / "second/README.md").read_text()
    (first / "model.safetensors").write_bytes((last / "model.safetensors").read_bytes())
    with pytest.raises(StorageError, match=r"step-000002: .*; name another checkpoint"):
        export(str(first), place / "damaged")


@pytest.mark.parametrize("source", ["run", "run/checkpoints/step-000003"])
def test_an_adapter_alone_finds_its_base_from_its_new_place(place, source):
    export(source, place / "far/adapter", adapter=True)
    base = json.loads((place / "far/adapter/base.json").read_text())
    assert (place / "far/adapter" / base["beside"]).resolve() == Path(base["name"])
    before, after = (load_file(f"{name}/adapter_model.safetensors") for name in ("run/model", "far/adapter"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_weights_are_rounded_after_they_were_merged(place):
    export("run", place / "whole")
    export("run", place / "rounded", dtype="bfloat16")
    whole, rounded = (load_file(f"{name}/model.safetensors") for name in ("whole", "rounded"))
    assert all(torch.equal(rounded[name], weight.bfloat16()) for name, weight in whole.items())


def test_what_cannot_be_exported_is_said(place, monkeypatch):
    with pytest.raises(InputError, match=r"rows\.jsonl exists already; name another place"):
        export("run", place / "rows.jsonl")
    with pytest.raises(InputError, match=r"llama has no LoRA adapter of its own; leave out --adapter"):
        export("llama", place / "x", adapter=True)
    with pytest.raises(InputError, match=r"--adapter writes the adapter as it was trained"):
        export("run", place / "x", adapter=True, dtype="bfloat16")
    shutil.rmtree("run/model")
    with pytest.raises(
        InputError, match=r"run has no model/ yet: .*; name a checkpoint, run/checkpoints/step-000003"
    ):
        export("run", place / "x")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        InputError, match=r"GGUF is written by llama\.cpp's convert_hf_to_gguf\.py, and there is none"
    ):
        export("llama", place / "x.gguf")
    assert not (place / "x").exists()


@pytest.mark.parametrize("works", [True, False])
def test_a_gguf_is_what_the_converter_on_the_path_made_of_the_merged_model(place, monkeypatch, works):
    tool = place / "convert_hf_to_gguf.py"
    say = (
        'cp "$1/model.safetensors" "$3"; echo "$4 $5" >> "$3"'
        if works
        else "echo no such architecture >&2; exit 1"
    )
    tool.write_text(f"#!/bin/sh\n{say}\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(place), prepend=":")
    if not works:
        with pytest.raises(InputError, match=r"did not convert the model: no such architecture\."):
            export("run", place / "m.gguf", dtype="float16")
    else:
        export("run", place / "m.gguf", dtype="float16")
        export("run", place / "whole", dtype="float16")
        assert (place / "m.gguf").read_bytes() == (
            place / "whole/model.safetensors"
        ).read_bytes() + b"--outtype f16\n"
    assert not list(place.glob(".export-*"))
    assert (place / "m.gguf").exists() == works
