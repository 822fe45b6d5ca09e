"""Two steps whose responses a vLLM server writes, and one that it answers wrongly, by however many processes."""

from pathlib import Path
from unittest.mock import patch

import torch
from accelerate.utils import gather_object
from torch.distributed.tensor import DTensor

import tiny
from cagsr.config.schema import Vllm
from cagsr.distributed.fsdp import gathered
from cagsr.distributed.process_group import World
from cagsr.errors import EndpointError
from cagsr.models import vllm_adapters
from cagsr.models.lora import with_lora
from cagsr.models.vllm import VLLMSampler
from cagsr.models.vllm_adapters import Adapter
from cagsr.models.vllm_weights import connect_for_weights
from cagsr.training.step_metrics import measure
from fake_vllm import MODEL, instead_of_nccl
from sharded import fsdp2


def tokens(rollout):
    return [ids[mask].tolist() for ids, mask in zip(rollout.response_ids, rollout.response_mask, strict=True)]


def asked(accelerator, url, group_port):
    with instead_of_nccl():
        return _asked(accelerator, url, group_port)


def _asked(accelerator, url, group_port):
    world = World(accelerator)
    policy = tiny.policy("llama", extra_eos=20)
    client = None
    if accelerator.is_main_process:
        server = Vllm(base_url=url, group_port=group_port, timeout=20.0)
        client = connect_for_weights(server, accelerator.device)
    sampler = VLLMSampler(policy, client, world)
    step = tiny.make_step(policy, accelerator=accelerator, groups_per_pass=1, sampler=sampler)
    mine = world.share(tiny.prompts(policy))
    found = {"clients": gather_object([sampler.client is not None])}
    found |= {"tokens": [], "rows": [], "weights": []}
    for number in range(2):
        found["weights"].append({name: weight.clone() for name, weight in policy.model.state_dict().items()})
        collected = step.collect(mine, number)
        found["tokens"].append(gather_object(tokens(collected.rollout)))
        found["rows"].append(measure(collected, world))
        step.update(collected.batches)
    try:
        step.collect(mine, 2)
    except EndpointError as error:
        found["errors"] = gather_object([str(error)])
    return found


def adapter_in_shards(accelerator, url, directory):
    """Two steps of an adapter in shards; responses to the first are written with all weights gathered."""
    fsdp2(accelerator, reshard_after_forward=True)
    world = World(accelerator)
    policy = tiny.policy("llama", extra_eos=20)
    torch.manual_seed(3)
    with_lora(policy, r=3, alpha=5, target_modules="all-linear")
    client = None
    if accelerator.is_main_process:
        server, adapter = Vllm(base_url=url, timeout=20.0), Adapter(MODEL, 3, Path(directory))
        with patch.object(vllm_adapters, "adapter_at", lambda name: None):  # it would ask the hub
            client = vllm_adapters.connect_for_adapters(server, adapter, or_weights=False)
    sampler = VLLMSampler(policy, client, world)
    step = tiny.make_step(policy, accelerator=accelerator, groups_per_pass=1, sampler=sampler)
    mine = world.share(tiny.prompts(policy))
    found = {"rows": [], "weights": []}
    for number in range(2):
        found["weights"].append(
            {
                name.replace(".default.", "."): weight.full_tensor().detach().clone()
                for name, weight in policy.model.named_parameters()
                if ".lora_" in name and isinstance(weight, DTensor)
            }
        )
        with (
            gathered(step.networks, accelerator, at_once=number == 0),
            patch.object(vllm_adapters, "adapter_at", lambda name: None),
        ):
            collected = step.collect(mine, number)
            found["rows"].append(measure(collected, world))
        step.update(collected.batches)
    return found
