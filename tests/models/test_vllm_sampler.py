"""Responses from a vLLM server: what is sent to it, what is believed of it, and what its samples count for.

The server is a fake that speaks vLLM's routes; the client is TRL's, with a channel in place of NCCL.
"""

import copy
import threading
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from accelerate import Accelerator
from trl.generation.vllm_client import VLLMClient

import tiny
from cagsr.config.schema import AlgorithmSettings, Vllm
from cagsr.distributed.process_group import World
from cagsr.errors import EndpointError, InputError, NumericsError
from cagsr.models.lora import with_lora
from cagsr.models.predictions import Scored
from cagsr.models.vllm import VLLMSampler
from cagsr.models.vllm_weights import WeightClient, connect_for_weights
from cagsr.training.algorithms import Algorithm
from cagsr.training.rollout_buffer import load_buffer, save_buffer
from cagsr.training.step import Collected
from cagsr.training.step_metrics import measure
from cagsr.types import Rollout, Scores, TrainBatch
from fake_vllm import FakeVLLM, instead_of_nccl

SAMPLING = tiny.sampling(temperature=0.7, top_p=0.9, top_k=50, min_new_tokens=2)
CPU = torch.device("cpu")
UNTOUCHED = VLLMClient.init_communicator


@pytest.fixture(autouse=True)
def _without_nccl():
    with instead_of_nccl():
        yield


@pytest.fixture
def server():
    """It begins with other weights than the policy."""
    with FakeVLLM(tiny.make_model("llama", seed=5)) as server:
        yield server


def connected(server, timeout=10.0):
    return connect_for_weights(Vllm(base_url=server.url, group_port=server.group_port, timeout=timeout), CPU)


def make_step(server, policy=None, **settings):
    policy = policy or tiny.policy("llama", extra_eos=20, temperature=settings.get("temperature", 1.0))
    settings.pop("temperature", None)
    sampler = VLLMSampler(policy, connected(server), World(Accelerator(cpu=True)))
    return tiny.make_step(policy, sampler=sampler, **settings)


def weights(policy):
    return {name: weight.detach().clone() for name, weight in policy.model.named_parameters()}


def same(received, expected):
    assert received.keys() == expected.keys()
    return all(torch.equal(received[name], expected[name]) for name in expected)


def test_the_weights_are_sent_before_every_rollout_and_the_settings_arrive(server):
    step = make_step(server, sampling=SAMPLING)
    prompts = tiny.prompts(step.policy)
    before = weights(step.policy)
    step.update(step.collect(prompts, seed=1).batches)
    after = weights(step.policy)
    step.collect(prompts, seed=2)
    assert not same(before, after)
    assert same(server.received[0], before)
    assert same(server.received[1], after)
    rollout = ["/start_weight_update", "/update_weights", "/finish_weight_update", "/reset_prefix_cache"]
    assert server.calls == [
        "/server_info", "/server_info", "/get_world_size", "/init_weight_transfer_engine",
        *[*rollout, "/v1/completions"] * 2,
    ]  # fmt: skip
    asked = server.asked[0]
    assert asked.prompt == [list(prompt.ids) for prompt in prompts]
    assert (asked.n, asked.max_tokens, asked.min_tokens) == (3, 7, 2)
    assert (asked.temperature, asked.top_p, asked.top_k) == (0.7, 0.9, 50)
    assert asked.stop_token_ids == step.policy.eos_ids
    assert len(asked.stop_token_ids) == 21


def test_a_rollout_is_as_the_policys_own_and_keeps_what_the_server_said_of_it(server):
    policy = tiny.policy("llama", extra_eos=20, temperature=0.7)
    sampler = VLLMSampler(policy, connected(server), World(Accelerator(cpu=True)))
    prompts = tiny.prompts(policy)
    rollout = sampler.sample(prompts, tiny.sampling(temperature=0.7))
    assert (len(rollout.responses), rollout.group_size) == (12, 3)
    assert rollout.prompt_ids.equal(policy.collate(prompts)[0])
    ended = 0
    for row, (ids, mask) in enumerate(zip(rollout.response_ids, rollout.response_mask, strict=True)):
        tokens = ids[mask].tolist()
        ends = [token in policy.eos_ids for token in tokens]
        assert not any(ends[:-1])
        assert ends[-1] == bool(rollout.finished[row])
        assert ends[-1] or len(tokens) == 7
        ended += ends[-1]
    assert 0 < ended < 12
    # The server has the policy's weights and its temperature, so they agree up to rounding.
    torch.testing.assert_close(rollout.sampled_logprobs, policy.logprobs(rollout), rtol=0, atol=1e-4)
    assert not rollout.sampled_logprobs[~rollout.response_mask].any()


def test_a_part_of_a_rollout_has_what_the_server_said_of_it(server):
    policy = tiny.policy("llama", extra_eos=60)
    sampler = VLLMSampler(policy, connected(server), World(Accelerator(cpu=True)))
    rollout = sampler.sample(tiny.prompts(policy), tiny.sampling(candidates=1))
    shortest = int(rollout.lengths.argmin())
    part = rollout.groups(shortest, shortest + 1)
    width = int(rollout.lengths.min())
    assert width < rollout.response_ids.shape[1]
    assert part.sampled_logprobs.equal(rollout.sampled_logprobs[shortest : shortest + 1, :width])


def test_the_row_of_numbers_says_how_far_the_server_is_from_the_policy(server):
    step = make_step(server)
    row = measure(step.collect(tiny.prompts(step.policy), seed=1), step.world)
    assert row["importance"] == pytest.approx(1, abs=1e-4)
    assert row["importance_max"] == pytest.approx(1, abs=1e-3)
    assert row["mismatch"] == pytest.approx(0, abs=1e-4)
    assert {"kl", "entropy"} <= row.keys()


def by_hand(old, sampled):
    """A collected step of one response whose tokens have these log-probabilities."""
    old, sampled = torch.tensor([old]), torch.tensor([sampled])
    ids, there = torch.arange(old.numel())[None], torch.ones(old.shape, dtype=torch.bool)
    finished = torch.tensor([False])
    rollout = Rollout([None], ids, there, ids, there, finished, [""], sampled_logprobs=sampled)
    nothing = torch.zeros(1, 0)
    scores = Scores((), nothing, torch.zeros(1), nothing)
    batch = TrainBatch(rollout, ref_logprobs=old, old_logprobs=old, entropy=torch.zeros_like(old))
    return Collected(rollout, scores, [batch], []), World(Accelerator(cpu=True))


def test_importance_and_mismatch_are_what_they_are_by_hand():
    row = measure(*by_hand([-1.0, -2.0, -3.0], [-1.5, -1.75, -2.5]))
    ratios = torch.tensor([0.5, -0.25, -0.5]).exp()
    assert row["importance"] == pytest.approx(float(ratios.mean()), rel=1e-6)
    assert row["importance_max"] == pytest.approx(float(ratios[0]), rel=1e-6)
    assert row["mismatch"] == pytest.approx(0.25 / 3, rel=1e-6)


@pytest.mark.parametrize(
    ("old", "sampled", "said"),
    [
        ([-1.0, -2.0], [-0.5, -1.4], "0.55 nats a token apart"),
        ([-1.0, -2.0], [-9999.0, -2.0], "the largest ratio of a token is inf"),
    ],
)
def test_a_server_that_is_far_from_the_policy_is_an_error_before_anything_is_learnt(old, sampled, said):
    with pytest.raises(NumericsError, match=said):
        measure(*by_hand(old, sampled))


def test_a_server_that_keeps_other_weights_is_noticed(server):
    server.deaf = True
    step = make_step(server)
    collected = step.collect(tiny.prompts(step.policy), seed=1)
    with pytest.raises(NumericsError, match=r"they do not have the same weights\. Does another run send"):
        measure(collected, step.world)


def test_the_corrected_gradient_is_what_it_is_by_hand():
    current = torch.tensor([[-1.0, -2.0, -1.0]], requires_grad=True)
    entropy = torch.tensor([[0.1, 0.2, 0.3]], requires_grad=True)
    reference = torch.tensor([[-1.5, -2.0, -3.0]])
    # Ratios e^0.5 = 1.6487, e^-1 = 0.3679 and e^2 = 7.389, which is cut at 2.
    rollout = Rollout([], *[torch.zeros(1, 3)] * 5, [""], sampled_logprobs=torch.tensor([[-1.5, -1.0, -3.0]]))
    batch = TrainBatch(
        rollout, reference, old_logprobs=current.detach(), advantages=torch.tensor([[1.0, -1.0, 0.5]])
    )
    loss, parts = Algorithm(AlgorithmSettings(entropy_coefficient=0.1)).token_losses(
        Scored(current, entropy, None), batch, 0.2
    )
    loss.sum().backward()
    weight = torch.tensor([[1.64872, 0.36788, 2.0]])
    advantage, distance = torch.tensor([[1.0, -1.0, 0.5]]), torch.tensor([[0.5, 0.0, 2.0]])
    torch.testing.assert_close(current.grad, weight * (-advantage + 0.2 * distance), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(parts["policy_loss"], -weight * advantage, rtol=1e-5, atol=1e-6)
    assert entropy.grad.tolist() == [pytest.approx([-0.1] * 3)]


def test_log_probabilities_that_agree_leave_the_update_as_it_is(server):
    ends = []
    for corrected in (True, False):
        step = make_step(server, optimizer=torch.optim.SGD)
        sampler = step.sampler
        if corrected:
            rollout = sampler.sample(tiny.prompts(step.policy), tiny.SHORT)
        mine = step.policy.logprobs(rollout)
        given = replace(rollout, sampled_logprobs=mine if corrected else None)
        step.sampler = type("Given", (), {"sample": lambda *_, given=given: given, "held_to_policy": True})()
        step.update(step.collect(rollout.prompts, 0).batches)
        ends.append(weights(step.policy))
    for name in ends[0]:
        torch.testing.assert_close(ends[0][name], ends[1][name], rtol=0, atol=1e-6)


def test_an_adapter_is_sent_merged_and_the_frozen_weights_stay_as_they_were(server):
    policy = tiny.policy("llama", extra_eos=20)
    with_lora(policy, r=2, alpha=4, target_modules="all-linear")
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    before = tiny.weights_of(policy)
    merged = copy.deepcopy(policy.model).merge_and_unload()
    make_step(server, policy).collect(tiny.prompts(policy), seed=1)
    expected = dict(merged.named_parameters())
    assert server.received[0].keys() == expected.keys()
    moved = 0
    for name, weight in server.received[0].items():
        torch.testing.assert_close(weight, expected[name].detach(), rtol=0, atol=1e-6)
        moved += not torch.equal(weight, before.get(f"model.base_model.model.{name}", weight + 1))
    assert moved > 10
    assert all(torch.equal(value, before[name]) for name, value in tiny.weights_of(policy).items())


def test_an_adapter_is_merged_in_its_own_precision_under_autocast():
    policy = tiny.policy("llama")
    with_lora(policy, r=2, alpha=4, target_modules=["q_proj"])
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(parameter)
    sent = []

    class TrlClient:
        def update_named_params(self, metadata, named_params):
            sent.append(dict(named_params))

        def reset_prefix_cache(self):
            pass

    client = WeightClient(TrlClient(), CPU, 64)
    client.push(policy.model)
    with torch.autocast("cpu", torch.bfloat16):
        client.push(policy.model)
    assert same(sent[0], sent[1])


def test_what_a_step_keeps_on_the_disk_keeps_the_servers_log_probabilities(server, tmp_path):
    step = make_step(server)
    prompts = tiny.prompts(step.policy)
    collected = step.collect(prompts, seed=1)
    save_buffer(collected, tmp_path, 0)
    again = load_buffer(tmp_path, 0, prompts, CPU)
    assert again.rollout.sampled_logprobs.equal(collected.rollout.sampled_logprobs)
    for one, other in zip(again.batches, collected.batches, strict=True):
        assert one.rollout.sampled_logprobs.equal(other.rollout.sampled_logprobs)


def first(change):
    return lambda choices: change(choices[0])


def logprobs(change):
    return lambda choices: change(choices[0]["logprobs"])


def of_first_token(value):
    def change(choices):
        choices[0]["logprobs"]["token_logprobs"][0] = value
        choices[0]["logprobs"]["top_logprobs"][0] = None

    return change


def shorter(choices):
    full = next(choice for choice in choices if choice["finish_reason"] == "length")
    full["token_ids"] = full["token_ids"][:3]
    for name in ("tokens", "token_logprobs", "top_logprobs"):
        full["logprobs"][name] = full["logprobs"][name][:3]


def longer(choices):
    choices[:] = [copy.deepcopy(choice) for choice in choices]
    choices[0]["token_ids"] = choices[0]["token_ids"] * 8


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda choices: choices.pop(), "it gave 11 responses, asked for 12"),
        (lambda choices: choices.clear(), "IndexError"),
        (first(lambda choice: choice.pop("token_ids")), "KeyError: 'token_ids'"),
        (first(lambda choice: choice.update(token_ids=None)), "TypeError"),
        (first(lambda choice: choice.update(token_ids=[])), "response 0 has 0 tokens, of at most 7"),
        (first(lambda choice: choice["token_ids"].append(3)), "response 0"),
        (longer, r"response 0 has \d+ tokens, of at most 7"),
        (shorter, r"response \d+ breaks off after 3 tokens, without an end of sequence"),
        (first(lambda choice: choice.update(prompt_token_ids=[3])), "are not those it was asked"),
        (first(lambda choice: choice.pop("logprobs")), "KeyError: 'logprobs'"),
        (lambda choices: [one.update(logprobs=None) for one in choices], "it gave no log-probabilities"),
        (logprobs(lambda given: given["token_logprobs"].pop()), "zip"),
        (logprobs(lambda given: given["tokens"].reverse()), "of response 0 are not those of its tokens"),
        (of_first_token(float("nan")), "response 0 has a token of log-probability nan"),
        (of_first_token(None), "TypeError"),
        (of_first_token(float("-inf")), "response 0 has a token of log-probability -inf"),
        (of_first_token(0.5), "response 0 has a token of log-probability 0.5"),
    ],
)
def test_an_answer_that_cannot_be_trained_on_is_named(server, spoil, said):
    server.spoil = spoil
    step = make_step(server)
    with pytest.raises(EndpointError, match=said) as caught:
        step.collect(tiny.prompts(step.policy), seed=1)
    assert str(caught.value).startswith(f"sampling.vllm: {server.url} does not answer as it should (")
    assert "VLLM_SERVER_DEV_MODE=1 vllm serve" in str(caught.value)


def test_a_token_that_the_model_does_not_know_is_named(server):
    step = make_step(server)

    def unknown(choices):
        token = len(step.policy.tokenizer) + 1000
        choices[0]["token_ids"][0] = token
        choices[0]["logprobs"]["tokens"][0] = f"token_id:{token}"
        choices[0]["logprobs"]["top_logprobs"][0] = None

    server.spoil = unknown
    with pytest.raises(EndpointError, match="response 0 has tokens that the model does not know"):
        step.collect(tiny.prompts(step.policy), seed=1)


def test_a_server_that_hangs_is_given_up(server):
    release = threading.Event()
    server.before = lambda route: route == "/v1/completions" and release.wait(30)
    policy = tiny.policy("llama")
    sampler = VLLMSampler(policy, connected(server, timeout=0.1), World(Accelerator(cpu=True)))
    try:
        with pytest.raises(EndpointError, match=r"does not answer \(ConnectionError: .*[Tt]imed? ?out"):
            sampler.sample(tiny.prompts(policy), tiny.SHORT)
    finally:
        release.set()
    assert server.calls.count("/v1/completions") == 6


def test_a_server_that_refuses_is_quoted(server):
    policy = tiny.policy("llama")
    sampler = VLLMSampler(policy, connected(server), World(Accelerator(cpu=True)))
    server.updating = True
    with pytest.raises(EndpointError, match=r"Request failed: 400, .*an update is under way"):
        sampler.sample(tiny.prompts(policy), tiny.SHORT)


def raw(server):
    server.logprobs_mode = "raw_logprobs"


def without_transfer(server):
    server.transfer = None


def without_development_routes(server):
    def refuse(route):
        raise KeyError(route)

    server.before = refuse


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (raw, r"gives raw_logprobs, .* Start it with --logprobs-mode processed_logprobs\."),
        (without_transfer, "has no weight-transfer engine"),
        (without_development_routes, "VLLM_SERVER_DEV_MODE=1"),
    ],
)
def test_a_server_that_was_started_without_what_training_needs_is_named(server, change, said):
    change(server)
    with pytest.raises(EndpointError, match=said):
        connected(server)


def test_a_server_that_is_not_there_is_named_with_the_command_that_starts_it(server):
    server.die()
    with pytest.raises(EndpointError, match=rf"{server.url} does not answer .* Start it, as VLLM_SERVER"):
        connected(server, timeout=0.01)


def test_what_is_not_installed_or_has_no_gpu_is_said_with_what_to_do(server):
    with (
        patch("trl.generation.vllm_client.is_vllm_available", lambda min_version=None: False),
        pytest.raises(
            InputError, match=r"needs TRL and vLLM where the trainer runs too \(vLLM is not installed"
        ),
    ):
        connected(server)
    with (
        patch.object(VLLMClient, "init_communicator", UNTOUCHED),
        pytest.raises(InputError, match="weights go from GPU to GPU, and this run is on cpu"),
    ):
        connected(server)
