"""Two steps whose responses a vLLM server writes, and one that it answers wrongly, by however many processes."""

from accelerate.utils import gather_object

import tiny
from cagsr.config.schema import Vllm
from cagsr.distributed.process_group import World
from cagsr.errors import EndpointError
from cagsr.models.vllm import VLLMSampler
from cagsr.models.vllm_weights import connect_for_weights
from cagsr.training.step_metrics import measure
from fake_vllm import instead_of_nccl


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
