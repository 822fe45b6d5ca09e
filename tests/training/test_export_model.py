"""`cagsr export`: what was trained, as a program loads it that knows nothing of this package."""

import json
import shutil
import stat
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from peft import AutoPeftModelForCausalLM
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import HuggingFaceStorageWriter
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from cagsr import Config, InputError, Trainer, train
from cagsr.errors import StorageError
from cagsr.io import manifest as seal
from cagsr.runs.directory import RunDirectory
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


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_checkpoint_in_shards_is_exported_and_a_file_of_another_one_is_not_read(place):
    checkpoint = place / "run/checkpoints/step-000002"
    export(str(checkpoint), place / "second")
    weights, about = load_file(checkpoint / "model.safetensors"), seal.manifest(checkpoint)
    writer = HuggingFaceStorageWriter(str(checkpoint / "shards"), save_distributed=True)
    dcp.save({f"weight.{name}": value for name, value in weights.items()}, storage_writer=writer)
    for replaced in ("model.safetensors", seal.MANIFEST):
        (checkpoint / replaced).unlink()
    seal.seal(checkpoint, run=about["run"], step=about["step"], update=about["update"])
    export(str(checkpoint), place / "sharded")
    assert torch.equal(logits("sharded"), logits("second"))
    (checkpoint / "shards/._shard-00001.safetensors").write_bytes(b"Mac OS X")
    with pytest.raises(
        StorageError, match=r"shards/\._shard-00001.safetensors is not of this checkpoint; remove it"
    ):
        export(str(checkpoint), place / "third")


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


def test_a_checkpoint_is_put_on_no_other_base_than_its_own(place):
    weights = load_file("llama/model.safetensors")
    save_file({name: 1.5 * w for name, w in weights.items()}, "llama/model.safetensors", {"format": "pt"})
    message = (
        r"llama is not the base that run/checkpoints/step-000003 was trained on: model \w{12}, was \w{12}\."
    )
    with pytest.raises(InputError, match=message):
        export("run/checkpoints/step-000003", place / "x")
    save_file(weights, "llama/model.safetensors", {"format": "pt"})
    export("run/checkpoints/step-000003", place / "x")
    about = json.loads((place / "llama/config.json").read_text())
    (place / "llama/config.json").write_text(json.dumps(about | {"rms_norm_eps": 0.1}))
    with pytest.raises(InputError, match=r"was trained on: tokenizer and model config \w{12}, was \w{12}\."):
        export("run/checkpoints/step-000003", place / "y")


def test_a_checkpoint_of_a_model_that_a_program_loaded_is_not_put_on_one_of_its_name(place):
    model = AutoModelForCausalLM.from_pretrained("llama")
    with torch.no_grad():
        model.lm_head.weight.mul_(1.3)
    keys = KEYS | {"run.directory": "mine"}
    args = Config.load(None, [f"{key}={value}" for key, value in keys.items()])
    Trainer(model, args, console=Console(quiet=True)).train()
    with pytest.raises(
        InputError, match=r"step-000003 stands on a model that a program loaded .* export \S+mine$"
    ):
        export("mine/checkpoints/step-000003", place / "x")
    export("mine", place / "x")


@pytest.mark.parametrize("newer", ["step-000004", "step-000003-update-0001", "step-1000000"])
def test_a_run_that_went_on_since_its_model_is_refused(place, newer):
    (place / "run/checkpoints" / newer).mkdir()
    with pytest.raises(
        InputError, match=rf"after 3 steps, .* the checkpoint run/checkpoints/{newer}, or run/model"
    ):
        export("run", place / "x")
    export("run/model", place / "x")
    RunDirectory(place / "run", "").write_summary({"steps": 1000001})
    export("run", place / "y")


def test_what_is_a_checkpoint_is_told_by_what_it_is(place, monkeypatch):
    shutil.copytree("llama", "checkpoints/mine")
    export("checkpoints/mine", place / "model")
    assert torch.equal(logits("model"), logits("llama"))
    shutil.copytree("run/checkpoints/step-000002", "checkpoints/step-000002")
    with pytest.raises(InputError, match=r"step-000002 is a checkpoint that lies in no run"):
        export("checkpoints/step-000002", place / "x")
    (place / "link").symlink_to("run/checkpoints/step-000002")
    export("link", place / "of-link")
    monkeypatch.chdir("run/checkpoints")
    with pytest.raises(
        InputError, match=r"llama is not the base .*: model unknown, was .* a relative path leads"
    ):
        export("step-000002", place / "x")
    (place / "llama").rename("llama")
    export("step-000002", place / "second")
    assert torch.equal(logits(place / "second"), logits(place / "of-link"))
    Path("step-000002/MANIFEST.json").unlink()
    with pytest.raises(
        StorageError, match=r"it has no MANIFEST\.json, so it was never finished; name another"
    ):
        export("step-000002", place / "x")


def test_the_directory_of_a_gguf_is_made_and_a_link_is_in_the_way(place, monkeypatch):
    tool = place / "convert_hf_to_gguf.py"
    tool.write_text('#!/bin/sh\ncp "$1/model.safetensors" "$3"\n')
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(place), prepend=":")
    export("llama", place / "no/such/m.gguf")
    assert (place / "no/such/m.gguf").is_file()
    with pytest.raises(StorageError, match=r"rows\.jsonl/m\.gguf cannot be written"):
        export("llama", place / "rows.jsonl/m.gguf")
    (place / "dangling").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"dangling exists already; name another place"):
        export("llama", place / "dangling")
