"""FSDP2 in two processes does what one process does, is saved like it, and goes on to the same bits."""

import lora_processes
import pytest
import sharded_processes
import torch
from accelerate import Accelerator
from accelerate.parallelism_config import ParallelismConfig
from accelerate.state import AcceleratorState
from accelerate.utils import TorchDynamoPlugin
from pair import found_by, found_by_two
from safetensors.torch import load_file

import tiny
from cagsr.distributed import fsdp as sharding
from cagsr.errors import InputError
from cagsr.io.adapters import base_at
from cagsr.models.lora import with_lora
from cagsr.training.preflight import refuse_merging
from sharded import fsdp2


@pytest.mark.parametrize("name", sorted(sharded_processes.RUNS))
def test_two_processes_with_a_shard_each_train_as_one_with_all_and_go_on_to_the_same_bits(name, tmp_path):
    alone = sharded_processes.run(name, Accelerator(cpu=True), tmp_path / "alone")
    found = found_by_two(sharded_processes.sharded_run, name, tmp_path)

    assert found["responses"] == alone["responses"]
    # Evaluated, trained, evaluated, trained, evaluated.
    assert len(found["rows"]) == len(alone["rows"]) == 5
    for row, expected in zip(found["rows"], alone["rows"], strict=True):
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-5)
    for saved in ("weights", "held"):
        assert found[saved].keys() == alone[saved].keys()
        for key, value in alone[saved].items():
            torch.testing.assert_close(found[saved][key], value, rtol=1e-5, atol=1e-5, msg=key)
            assert torch.equal(found["again"][saved][key], found[saved][key]), key
    start = tiny.weights_of(tiny.policy(sharded_processes.RUNS[name][0]).model)
    assert max(float((start[key] - value).abs().max()) for key, value in found["weights"].items()) > 1e-3

    (stopped,) = set(found["stopped"])
    assert stopped.startswith("StoppedError: stopped by SIGTERM in step 2, after 1 optimizer steps")
    assert found["kept"] == ["step-000001-update-0001"]
    assert found["rows again"] == found["rows"]
    for one, other in zip(*found["files"], strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[key]) for key, value in one.items())
    _go_on_with_other_weights(name, found, alone, tmp_path)
    sizes = [sum(value.numel() for value in one.values()) for one in found["files"][0]]
    assert len(sizes) == 2
    assert max(sizes) < 0.55 * sum(sizes)

    assert len(found["full"]) == 2
    for said in found["full"]:
        assert "No space left on device; free some space" in said
        assert said.endswith("The earlier checkpoints are untouched.")
    assert found["untouched"]
    # A number that is not finite lies in one process's shard; both see it.
    assert len(found["bad"]) == 2
    assert all(message.startswith("NumericsError: step 9: the weights ") for message in found["bad"])


def _go_on_with_other_weights(name, found, alone, place):
    """Shards load what one process saved whole, and one process loads shards."""
    for key, value in alone["held"].items():
        assert torch.equal(found["from whole"][key], value), key
    whole = torch.load(place / "alone" / sharded_processes.LAST / "optimizer.bin", weights_only=True)["state"]
    moments = [value for values in whole.values() for key, value in values.items() if key != "step"]
    assert len(moments) == 2 * len(whole)
    for loaded, value in zip(found["moments from whole"], moments, strict=True):
        assert torch.equal(loaded, value)

    loop, _ = sharded_processes.make(name, Accelerator(cpu=True), place / "back")
    assert loop.checkpoints.load(place / "whole" / sharded_processes.LAST)["step"] == 2
    policy, state = loop.step.policy, loop.step.optimizer.state
    for key, weight in policy.named_parameters():
        assert torch.equal(weight, found["held"][key]), key
        parts = [
            file[f"moment.{key}.exp_avg"] for file in found["files"][0] if f"moment.{key}.exp_avg" in file
        ]
        assert torch.equal(state[weight]["exp_avg"], torch.cat(parts)), key


def test_an_adapter_in_four_shards_trains_as_in_one_process_and_two_processes_go_on_with_it(tmp_path):
    base = tmp_path / "base"
    lora_processes.save_base(base)
    four = found_by(4, lora_processes.sharded, base, tmp_path / "four", 1)
    two = found_by(2, lora_processes.resumed, base, tmp_path / "four", tmp_path / "two")
    alone = lora_processes.run(Accelerator(cpu=True), base, tmp_path / "alone")

    assert two["responses"] == alone["responses"]
    # Evaluated, trained and evaluated by four, at their last step; trained and evaluated by two.
    first, trained, _ = four["rows"]
    for row, expected in zip([first, trained, *two["rows"]], alone["rows"], strict=True):
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-5)
    for saved in ("model", "held"):
        assert two[saved].keys() == alone[saved].keys()
        for key, value in alone[saved].items():
            torch.testing.assert_close(two[saved][key], value, rtol=1e-5, atol=1e-5, msg=key)
            assert value.dim() < 2 or float((value - four[saved][key]).abs().max()) > 1e-4, key
    # One of the blocks is whole at a time, in rollouts, evaluations and forward passes of updates.
    assert (four["gathered"], two["gathered"]) == (1, 1)
    assert two["files"] == alone["files"]
    assert all(".lora_" in key for key in alone["model"])


def test_an_adapter_that_is_gone_on_from_trains_in_shards_as_in_one_process(tmp_path):
    base, start = tmp_path / "base", tmp_path / "start/model"
    lora_processes.save_base(base)
    lora_processes.run(Accelerator(cpu=True), base, start.parent, 1)
    two = found_by(2, lora_processes.going_on, base, start, tmp_path / "two")
    alone = lora_processes.run(Accelerator(cpu=True), base, tmp_path / "alone", start=start)
    assert two["responses"] == alone["responses"]
    for row, expected in zip(two["rows"], alone["rows"], strict=True):
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-5)
    before = load_file(start / "adapter_model.safetensors")
    assert two["model"].keys() == alone["model"].keys() == before.keys()
    for key, value in alone["model"].items():
        torch.testing.assert_close(two["model"][key], value, rtol=1e-5, atol=1e-5, msg=key)
        assert float((value - before[key]).abs().max()) > 1e-4, key


@pytest.fixture
def accelerator(monkeypatch):
    # Accelerate's plugin writes some of its settings there.
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")
    monkeypatch.setattr(sharding, "_is_alone", lambda _: False)
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"fsdp_version": 1}, "version 1 is not supported: .* Set fsdp_version: 2"),
        ({"cpu_offload": True}, "not with fsdp_offload_params: true. Set it to false"),
        (
            {"cpu_ram_efficient_loading": True},
            "not with fsdp_cpu_ram_efficient_loading: true. Set it to false",
        ),
        (
            {"activation_checkpointing": True},
            "not with fsdp_activation_checkpointing: true. .*train.gradient",
        ),
        ({"ignored_modules": "model.lm_head"}, "not with fsdp_ignored_modules. Leave it out"),
        (
            {"auto_wrap_policy": "size_based_wrap"},
            "not with fsdp_auto_wrap_policy: SIZE_BASED_WRAP. Set it to TRANSFORMER_",
        ),
    ],
)
def test_a_setting_of_fsdp_that_would_train_wrongly_or_fail_is_refused_by_name(settings, said, accelerator):
    with pytest.raises(InputError, match=f"^FSDP: {said}"):
        sharding.check_shards(fsdp2(accelerator, **settings))


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("dynamo_plugin", TorchDynamoPlugin(backend="inductor"), "not with dynamo_backend. Set it to no"),
        ("parallelism_config", ParallelismConfig(), "not with parallelism_config. Leave it out"),
    ],
)
def test_what_accelerate_would_lay_over_the_shards_is_refused_by_name(part, value, said, accelerator):
    fsdp2(accelerator)
    sharding.check_shards(accelerator)
    AcceleratorState._shared_state[part] = value
    with pytest.raises(InputError, match=f"^FSDP: {said}"):
        sharding.check_shards(accelerator)


def test_one_process_alone_is_refused(accelerator, monkeypatch):
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"^FSDP: one process has nothing to shard. Launch several"):
        sharding.check_shards(fsdp2(accelerator))


def test_an_adapter_that_could_only_be_saved_merged_is_refused(accelerator):
    policy = tiny.policy("llama")
    refuse_merging(policy, fsdp2(accelerator))
    with_lora(policy, r=2, alpha=4, target_modules="all-linear")
    with pytest.raises(InputError, match=r"^FSDP: the adapter's base lies nowhere by itself"):
        refuse_merging(policy, accelerator)
    policy.base = base_at("a-model", "a-commit")
    refuse_merging(policy, accelerator)


def test_where_accelerate_would_leave_weights_whole_that_is_said(accelerator, monkeypatch):
    assert not sharding.asked_to_shard(accelerator)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert sharding.asked_to_shard(accelerator)
    with pytest.raises(
        InputError, match=r"^FSDP: Accelerate shards on GPUs, .* here \(cpu\) it would silently"
    ):
        sharding.check_shards(accelerator)


def test_a_block_that_the_model_does_not_have_is_named(accelerator):
    policy = tiny.policy("llama")
    optimizer = torch.optim.SGD(policy.parameters())
    with pytest.raises(
        InputError, match=r"T5Block is no block of the model. .* its blocks: LlamaDecoderLayer\."
    ):
        sharding.prepare(policy, optimizer, fsdp2(accelerator, transformer_cls_names_to_wrap=["T5Block"]))
