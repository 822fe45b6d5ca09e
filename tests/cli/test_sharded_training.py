"""`cagsr train` under FSDP2: the config that ships, read by Accelerate's own launcher."""

import json
from functools import partial
from pathlib import Path

import launched_variables
import pytest
import sharded_cli
import torch
from safetensors.torch import load_file

import forked

FSDP = Path(__file__).parents[2] / "examples/accelerate/fsdp.yaml"
RUN = [
    "train",
    "data.task=slots",
    "data.count=11",
    "data.evaluation_count=5",
    "train.steps=2",
    "train.prompts_per_step=4",
    "train.micro_batch=3",
    "train.learning_rate=1e-4",
    "train.gradient_checkpointing=true",
    "sampling.candidates=3",
    "sampling.max_new_tokens=7",
]


OF_RUN = {
    "adapter": ["model.lora={r: 3, target_modules: [down_proj]}", "train.learning_rate=1e-2"],
    "bf16": ["train.mixed_precision=bf16"],
}
BY_BLOCK = "train.gather_for_rollouts=false"


@pytest.fixture(scope="module")
def sharded(tmp_path_factory, models) -> Path:
    """A directory with a run of an adapter in float32, and one of all weights in bf16, of two processes with shards.

    Accelerate's launcher reads the config and starts two processes, which keep the variables that it gave them; those
    that train are forked with these variables.
    """
    directory = tmp_path_factory.mktemp("sharded")
    launch = ["--config_file", FSDP, "--num_processes", "2", "--main_process_port", "0"]
    launcher = partial(
        forked.module, "accelerate.commands.launch", [*launch, launched_variables.__file__, "given.json"]
    )
    launched = forked.start(launcher, directory, {"ACCELERATE_USE_CPU": "1"})
    assert launched.wait(240) == 0, launched.err[-3000:]
    variables = json.loads((directory / "given.json").read_text())
    assert (variables["FSDP_VERSION"], variables["WORLD_SIZE"]) == ("2", "2")
    for name, settings in OF_RUN.items():
        here = [f"run.directory={name}", f"model.name={models / 'llama'}"]
        if name == "adapter":
            here.append(BY_BLOCK)
        trained = partial(sharded_cli.sharded, [*RUN, *settings, *here])
        forked.wait_for_both(forked.start_two(trained, directory, variables))
    return directory


def rows(directory):
    found = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    other = ("seconds", "tokens_per_second", "memory", "warning")
    return [{key: value for key, value in row.items() if key not in other} for row in found]


def distance(one, other):
    """Euclidean, over all weights."""
    return float(torch.stack([(one[key] - other[key]).norm() for key in one]).norm())


@pytest.mark.parametrize("name", OF_RUN)
def test_in_shards_the_command_line_trains_and_saves_what_one_process_does(
    name, sharded, tmp_path, models, cagsr
):
    alone = cagsr(*RUN, *OF_RUN[name], "run.directory=alone", f"model.name={models / 'llama'}")
    assert alone.code == 0, alone.err
    for row, expected in zip(rows(sharded / name), rows(tmp_path / "alone"), strict=True):
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-5)
    kind = "adapter_model" if name == "adapter" else "model"
    for saved in ("model", "best"):
        ours, theirs = sharded / name / saved, tmp_path / "alone" / saved
        assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()}
        config = "adapter_config.json" if name == "adapter" else "config.json"
        assert json.loads((ours / config).read_text()) == json.loads((theirs / config).read_text())
        weights, expected = (load_file(each / f"{kind}.safetensors") for each in (ours, theirs))
        assert weights.keys() == expected.keys()
        if name == "adapter":  # the other half begins at 0
            expected = {key: value for key, value in expected.items() if "lora_B" in key}
            start = {key: torch.zeros_like(value) for key, value in expected.items()}
        else:
            start = load_file(models / "llama/model.safetensors")
        # AdamW goes by the sign of a gradient, also of one that is rounding: a single entry may go the other way.
        moved, apart = (distance(expected, other) for other in (start, weights))
        assert moved > 1e-3
        assert apart < 0.05 * moved
    identity = json.loads((sharded / name / "run.json").read_text())["identity"]
    assert identity["weights"] == "in shards (FSDP2)"


def test_what_accelerate_cannot_make_sense_of_is_said(cagsr, models, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("FSDP_RESHARD_AFTER_FORWARD", "FULL_SHARD")  # as FSDP 1 calls it
    ended = cagsr("train", "data.task=slots", f"model.name={models / 'llama'}")
    assert ended.code == 2
    assert "accelerate launch: Accelerate refuses its config: invalid truth value full_shard" in " ".join(
        ended.err.split()
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            ["train", "data.task=slots"],
            "FSDP: Accelerate shards on GPUs, in processes of a launcher; here (cpu)",
        ),
        (["sft", "data.task=slots"], "FSDP: only `cagsr train` trains in shards, cagsr sft does not."),
        (
            ["compare", "data.task=slots"],
            "FSDP: only `cagsr train` trains in shards, cagsr compare does not.",
        ),
        (["demo", "--directory", "demo"], "FSDP: only `cagsr train` trains in shards, cagsr demo does not."),
    ],
)
def test_what_would_not_be_trained_in_shards_is_refused_before_anything_is_written(
    command, said, cagsr, models, tmp_path, monkeypatch
):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    named = [] if command[0] == "demo" else [f"model.name={models / 'llama'}"]
    ended = cagsr(*command, *named)
    assert ended.code == 2
    assert said in " ".join(ended.err.split())
    assert not list(tmp_path.iterdir())


def as_one_of_several(monkeypatch):
    """This process as one that has shards, for what is refused before it meets the others."""
    monkeypatch.setattr("cagsr.training.trainer.accelerated", sharded_cli.accelerator)
    monkeypatch.setattr("cagsr.distributed.fsdp._is_alone", lambda _: False)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (
            BY_BLOCK,
            "FSDP: train.gather_for_rollouts: false gathers a block at a time in rollouts, and fsdp_reshard",
        ),
        (
            "sampling.engine=vllm",
            "FSDP: sampling.engine: vllm takes an adapter from shards, and not all weights.",
        ),
        ("sampling.dtype=bfloat16", "FSDP: not with sampling.dtype. Launch with data parallelism"),
    ],
)
def test_what_does_not_go_with_shards_is_refused_before_anything_is_written(
    setting, said, cagsr, models, tmp_path, monkeypatch
):
    monkeypatch.setenv("FSDP_RESHARD_AFTER_FORWARD", "false")
    as_one_of_several(monkeypatch)
    ended = cagsr(*RUN, f"model.name={models / 'llama'}", setting)
    assert ended.code == 2
    assert said in " ".join(ended.err.split())
    assert not list(tmp_path.iterdir())


def test_without_shards_there_is_nothing_to_gather(cagsr, models, tmp_path):
    ended = cagsr(*RUN, f"model.name={models / 'llama'}", BY_BLOCK)
    assert ended.code == 2
    assert "train.gather_for_rollouts: false is for weights in shards" in " ".join(ended.err.split())
    assert not list(tmp_path.iterdir())


def test_a_run_with_whole_weights_does_not_go_on_in_shards_unasked(cagsr, models, monkeypatch):
    settings = [*RUN, f"model.name={models / 'llama'}", "run.directory=run"]
    assert cagsr(*settings).code == 0
    as_one_of_several(monkeypatch)
    ended = cagsr(*settings, "train.steps=3", "--resume")
    assert ended.code == 2
    assert "weights: in shards (FSDP2), was whole" in " ".join(ended.err.split())
