"""The configs for `accelerate launch`: Accelerate reads them, and what the page on many GPUs says of FSDP is so."""

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin
from documented_pages import ROOT
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import tiny
from cagsr.distributed import fsdp as sharding
from cagsr.errors import InputError
from cagsr.training.preflight import check_launch

EXAMPLES = ROOT / "examples" / "accelerate"


def launched(name, monkeypatch):
    """What the launcher would hand to a process: its arguments, with the example's config filled in."""
    monkeypatch.chdir(ROOT)
    given = launch_command_parser().parse_args(
        ["--config_file", str(EXAMPLES / f"{name}.yaml"), "-m", "cagsr", "train"]
    )
    return _validate_launch_command(given)[0]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ddp", DistributedType.MULTI_GPU),
        ("fsdp", DistributedType.FSDP),
        ("deepspeed-zero2", DistributedType.DEEPSPEED),
    ],
)
def test_accelerate_reads_the_example(name, kind, monkeypatch):
    assert load_config_from_file(str(EXAMPLES / f"{name}.yaml")).distributed_type == kind
    given = launched(name, monkeypatch)
    assert (given.num_processes, given.mixed_precision) == (8, "no")
    assert (given.multi_gpu, given.use_fsdp, given.use_deepspeed) == tuple(
        kind == other
        for other in (DistributedType.MULTI_GPU, DistributedType.FSDP, DistributedType.DEEPSPEED)
    )


def test_the_fsdp_example_makes_accelerates_plugin(monkeypatch):
    given = launched("fsdp", monkeypatch)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=given.fsdp_version,
        reshard_after_forward=given.fsdp_reshard_after_forward,
        auto_wrap_policy=given.fsdp_auto_wrap_policy,
        state_dict_type=given.fsdp_state_dict_type,
    )
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"


def test_the_deepspeed_example_makes_accelerates_plugin(monkeypatch):
    given = launched("deepspeed-zero2", monkeypatch)
    plugin = DeepSpeedPlugin(hf_ds_config=given.deepspeed_config_file)
    assert plugin.zero_stage == 2
    # Accelerate wants a number where no dataloader is prepared, and ours is none.
    assert plugin.deepspeed_config["train_micro_batch_size_per_gpu"] == 1
    written = json.loads((EXAMPLES / "deepspeed-zero2.json").read_text())
    assert plugin.deepspeed_config.items() >= written.items()


def test_deepspeed_is_refused_by_name_and_data_parallelism_is_not():
    with pytest.raises(InputError, match=r"^DEEPSPEED: not supported: .* its optimizer step inside"):
        check_launch(cast(Any, SimpleNamespace(distributed_type=DistributedType.DEEPSPEED)), "cagsr train")
    check_launch(
        cast(Any, SimpleNamespace(distributed_type=DistributedType.MULTI_GPU, num_processes=2)), "cagsr train"
    )


@pytest.fixture
def alone(tmp_path):
    """A group of one process: parameters are sharded in it as in one of many."""
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("reshard", [True, False])
def test_what_the_page_says_of_fsdp_is_so_outside_of_a_gathering_a_rollout_is_an_error(alone, reshard):
    whole, policy = (tiny.policy("llama", extra_eos=20) for _ in range(2))
    prompts = tiny.prompts(whole)
    rollout = whole.sample(prompts, tiny.SHORT)
    for block in policy.model.model.layers:
        fully_shard(block, mesh=alone, reshard_after_forward=reshard)
    fully_shard(policy, mesh=alone, reshard_after_forward=reshard)
    plugin = SimpleNamespace(reshard_after_forward=reshard)
    accelerator = cast(Any, SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin)))
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.0)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"got mixed torch\.Tensor and DTensor"):
            policy.sample(prompts, tiny.SHORT)
        with sharding.gathered([policy], accelerator):
            assert policy.sample(prompts, tiny.SHORT).responses == rollout.responses
        scored = policy(rollout)
        torch.testing.assert_close(scored.logprobs, whole(rollout).logprobs)
        scored.logprobs.sum().backward()
        optimizer.step()
