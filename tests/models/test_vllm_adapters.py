"""Adapters handed to a vLLM server as files: which one answers, what is refused, and what a dead server costs."""

import shutil
import threading
from pathlib import Path
from unittest.mock import patch

import httpx2
import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model

import tiny
from cagsr.config.schema import Vllm
from cagsr.distributed.process_group import World
from cagsr.errors import EndpointError, InputError, StorageError
from cagsr.models import vllm_adapters
from cagsr.models.lora import with_lora
from cagsr.models.vllm import VLLMSampler, refuse_longer
from cagsr.models.vllm_adapters import PLACE, Adapter, connect_for_adapters
from cagsr.training.step_metrics import measure
from fake_vllm import MODEL, FakeVLLM, Refused

WORLD = World(Accelerator(cpu=True))


@pytest.fixture(autouse=True)
def _without_pauses_and_hub():
    here = vllm_adapters.adapter_at
    with (
        patch.object(vllm_adapters, "PAUSE", 0.0),
        patch.object(vllm_adapters, "adapter_at", lambda name: here(name) if Path(name).is_dir() else None),
    ):
        yield


@pytest.fixture
def server():
    """It has the policy's base, as a server must that is sent nothing but adapters."""
    with FakeVLLM(tiny.make_model("llama")) as server:
        yield server


@pytest.fixture
def place(tmp_path):
    return tmp_path / "run" / PLACE


def connected(server, tmp_path, *, base=MODEL, rank=2, timeout=10.0, or_weights=False):
    adapter = Adapter(base, rank, tmp_path / "run")
    return connect_for_adapters(Vllm(base_url=server.url, timeout=timeout), adapter, or_weights)


def adapted(extra_eos=20, temperature=1.0, std=0.1):
    policy = tiny.policy("llama", extra_eos=extra_eos, temperature=temperature)
    with_lora(policy, r=2, alpha=4, target_modules="all-linear")
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=std, generator=torch.Generator().manual_seed(len(name)))
    return policy


def weights(policy):
    """Those of the adapter, by their names in its file."""
    return {
        name.replace(".default.", "."): weight.detach().clone()
        for name, weight in policy.model.named_parameters()
        if ".lora_" in name
    }


def same(loaded, expected):
    assert loaded.keys() == expected.keys()
    return all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_every_rollout_is_written_by_the_adapter_as_it_is_then(server, tmp_path, place):
    policy = adapted(temperature=0.7)
    sampling = tiny.sampling(temperature=0.7, min_new_tokens=2)
    sampler = VLLMSampler(policy, connected(server, tmp_path), WORLD)
    step = tiny.make_step(policy, sampler=sampler, sampling=sampling)
    prompts, before = tiny.prompts(policy), weights(policy)
    first = step.collect(prompts, seed=1)
    step.update(first.batches)
    after = weights(policy)
    second = step.collect(prompts, seed=2)
    assert not same(before, after)
    assert [same(server.loaded[0], before), same(server.loaded[1], after)] == [True, True]
    # Up to rounding they agree, which the base and the adapter of a step before would not.
    for rollout, row in ((first.rollout, measure(first, WORLD)), (second.rollout, measure(second, WORLD))):
        assert rollout.prompt_ids.equal(policy.collate(prompts)[0])
        assert row["importance_max"] == pytest.approx(1, abs=1e-3)
    names = [asked.model for asked in server.asked]
    assert len(set(names)) == 2
    assert server.adapters == {}
    assert not place.exists()
    asked = server.asked[0]
    assert asked.prompt == [list(prompt.ids) for prompt in prompts]
    assert (asked.n, asked.max_tokens, asked.min_tokens, asked.temperature) == (3, 7, 2, 0.7)
    assert asked.stop_token_ids == policy.eos_ids
    examined = ["/server_info", "/v1/load_lora_adapter"]
    rollout = [*examined, "/v1/load_lora_adapter", "/v1/completions", "/v1/unload_lora_adapter"]
    assert server.calls == [*examined, *rollout, *rollout]


def test_the_adapter_of_the_step_before_would_be_seen(server, tmp_path):
    """What the test above compares moves by more than its tolerance."""
    policy = adapted()
    client = connected(server, tmp_path)
    sampler = VLLMSampler(policy, client, WORLD)
    rollout = sampler.sample(tiny.prompts(policy), tiny.SHORT)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.mul_(1.5)
    assert (policy.logprobs(rollout) - rollout.sampled_logprobs).abs().max() > 1e-2


def test_the_files_lie_there_while_the_server_writes_and_are_those_of_peft(server, tmp_path, place):
    seen = []
    server.spoil = lambda choices: seen.append(
        [(path.parent.name, path.name) for path in sorted(place.rglob("*.*")) if path.is_file()]
    )
    policy = adapted()
    VLLMSampler(policy, connected(server, tmp_path), WORLD).sample(tiny.prompts(policy), tiny.SHORT)
    name = server.asked[0].model
    files = ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert seen == [[(name.rpartition("-")[0], file) for file in files]]


def test_what_a_killed_process_left_is_taken_away_and_other_peoples_adapters_stay(server, tmp_path, place):
    policy = adapted()
    client = connected(server, tmp_path)
    (place / "cagsr-left").mkdir(parents=True)
    server.adapters = {"cagsr-left": (str(place / "cagsr-left"), None), "other": ("/another/run", None)}
    VLLMSampler(policy, client, WORLD).sample(tiny.prompts(policy), tiny.SHORT)
    assert [*server.adapters] == ["other"]
    assert not place.exists()


@pytest.mark.parametrize("route", ["/v1/load_lora_adapter", "/v1/completions"])
def test_a_server_that_dies_and_comes_back_is_handed_the_adapter_again(server, tmp_path, route):
    policy = adapted()
    sampler = VLLMSampler(policy, connected(server, tmp_path), WORLD)
    deaths = [1, 2]

    def dies(asked):
        if asked == route and deaths:
            deaths.pop()
            server.adapters.clear()
            raise ConnectionResetError

    server.before = dies
    rollout = sampler.sample(tiny.prompts(policy), tiny.SHORT)
    assert deaths == []
    assert len(rollout.responses) == 12
    assert all(same(loaded, weights(policy)) for loaded in server.loaded)
    assert len({asked.model for asked in server.asked}) == 1
    torch.testing.assert_close(rollout.sampled_logprobs, policy.logprobs(rollout), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"name": "org/other"}, "serves org/other, which is not"), ({"lora": None}, "takes no LoRA adapters")],
)
def test_a_server_that_comes_back_as_another_is_refused(server, tmp_path, change, said):
    policy = adapted()
    sampler = VLLMSampler(policy, connected(server, tmp_path), WORLD)

    def dies(route):
        if route == "/v1/completions":
            for name, value in change.items():
                setattr(server, name, value)
            raise ConnectionResetError

    server.before = dies
    with pytest.raises(EndpointError, match=said):
        sampler.sample(tiny.prompts(policy), tiny.SHORT)
    assert server.asked == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "org/other"}, "serves org/other, which is not"),
        ({"logprobs_mode": "raw_logprobs"}, "gives raw_logprobs, which are not of the distribution"),
        ({"updates_adapters": False}, "loads no adapter while it runs"),
    ],
)
def test_a_server_started_otherwise_between_two_rollouts_is_refused(server, tmp_path, change, said):
    policy = adapted()
    sampler = VLLMSampler(policy, connected(server, tmp_path), WORLD)
    sampler.sample(tiny.prompts(policy), tiny.SHORT)
    for name, value in change.items():
        setattr(server, name, value)
    with pytest.raises(EndpointError, match=said):
        sampler.sample(tiny.prompts(policy), tiny.SHORT)
    assert len(server.asked) == 1


def test_a_server_that_has_forgotten_the_adapter_is_handed_it_again(server, tmp_path):
    policy = adapted()
    sampler = VLLMSampler(policy, connected(server, tmp_path), WORLD)
    forgets = [1]

    def forgetting(route):
        if route == "/v1/completions" and forgets:
            forgets.pop()
            server.adapters.clear()

    server.before = forgetting
    assert len(sampler.sample(tiny.prompts(policy), tiny.SHORT).responses) == 12
    assert len(server.loaded) == 2
    assert not server.adapters


def test_the_adapter_of_a_refused_request_is_taken_from_the_server(server, tmp_path):
    policy = adapted()
    sampler = VLLMSampler(policy, connected(server, tmp_path), WORLD)
    with pytest.raises(EndpointError, match=r"Refused: status 400: .*top_p"):
        sampler.sample(tiny.prompts(policy), tiny.sampling(top_p="all"))
    assert not server.adapters


def test_responses_of_one_prompt_are_told_from_anothers(server, tmp_path):
    policy = adapted()
    sampler = VLLMSampler(policy, connected(server, tmp_path), WORLD)
    server.spoil = lambda choices: choices[1].update(prompt_token_ids=choices[-1]["prompt_token_ids"])
    with pytest.raises(EndpointError, match="responses to a prompt do not come one after another"):
        sampler.sample(tiny.prompts(policy), tiny.SHORT)
    server.spoil = lambda choices: choices.reverse()
    rollout = sampler.sample(tiny.prompts(policy), tiny.SHORT)
    torch.testing.assert_close(rollout.sampled_logprobs, policy.logprobs(rollout), rtol=0, atol=1e-4)


def test_a_server_that_stays_away_is_given_up_and_nothing_is_left(server, tmp_path, place):
    policy = adapted()
    sampler = VLLMSampler(policy, connected(server, tmp_path, timeout=0.3), WORLD)
    server.die()
    with pytest.raises(EndpointError, match=rf"{server.url} does not answer \(ConnectError: .*--enable-lora"):
        sampler.sample(tiny.prompts(policy), tiny.SHORT)
    assert not place.exists()


def test_a_server_that_hangs_is_given_up(server, tmp_path):
    release = threading.Event()
    policy = adapted()
    sampler = VLLMSampler(policy, connected(server, tmp_path, timeout=0.3), WORLD)
    server.before = lambda route: route == "/v1/completions" and release.wait(30)
    try:
        with pytest.raises(EndpointError, match=r"does not answer \(ReadTimeout: timed out\)"):
            sampler.sample(tiny.prompts(policy), tiny.SHORT)
    finally:
        release.set()
    assert server.calls.count("/v1/completions") == 6


def test_what_a_dying_server_says_is_asked_again_and_what_it_refuses_is_not(server, tmp_path):
    policy = adapted()
    sampler = VLLMSampler(policy, connected(server, tmp_path), WORLD)

    def dying(route):
        if route == "/v1/completions":
            raise Refused("the engine is dead", 500)

    server.before = dying
    with pytest.raises(EndpointError, match=r"Refused: status 500: .*the engine is dead"):
        sampler.sample(tiny.prompts(policy), tiny.SHORT)
    assert server.calls.count("/v1/completions") == 6
    server.before, server.calls = lambda route: None, []
    with pytest.raises(EndpointError, match=r"Refused: status 400: .*top_p"):
        sampler.sample(tiny.prompts(policy), tiny.sampling(top_p="all"))
    assert server.calls.count("/v1/completions") == 1


def test_an_answer_of_another_model_is_no_answer(server, tmp_path):
    policy = adapted()
    client = connected(server, tmp_path)
    sent = client.post

    def answered_by_another(route, body):
        response = sent(route, body)
        if route == "/v1/completions":
            return httpx2.Response(200, json=response.json() | {"model": MODEL})
        return response

    with (
        patch.object(type(client), "post", lambda _, route, body: answered_by_another(route, body)),
        pytest.raises(EndpointError, match=r"a-model answered, and cagsr-[0-9a-f]{16}-[0-9a-f]{8} was asked"),
    ):
        VLLMSampler(policy, client, WORLD).sample(tiny.prompts(policy), tiny.SHORT)


def test_a_server_that_does_not_see_the_files_is_told_of(server, tmp_path):
    policy = adapted()
    sampler = VLLMSampler(policy, connected(server, tmp_path), WORLD)
    place = tmp_path / "run" / PLACE
    server.before = lambda route: (
        route == "/v1/load_lora_adapter" and shutil.rmtree(place, ignore_errors=True)
    )
    with pytest.raises(EndpointError, match=r"does not find .*cagsr-.* Set run\.directory to a place that"):
        sampler.sample(tiny.prompts(policy), tiny.SHORT)


def test_a_full_disk_is_a_storage_error(server, tmp_path, place):
    policy = adapted()
    sampler = VLLMSampler(policy, connected(server, tmp_path), WORLD)
    full = OSError(28, "No space left on device")
    with (
        patch.object(policy.model, "save_pretrained", side_effect=full),
        pytest.raises(StorageError, match="cannot be written: No space left on device"),
    ):
        sampler.sample(tiny.prompts(policy), tiny.SHORT)
    assert not place.exists()
    assert "/v1/completions" not in server.calls


def without_development_routes(server):
    def refuse(route):
        if route == "/server_info":
            raise KeyError(route)

    server.before = refuse


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"logprobs_mode": "raw_logprobs"}, r"gives raw_logprobs, .* Start it with --logprobs-mode"),
        ({"lora": None}, "takes no LoRA adapters. Start it with --enable-lora: VLLM_SERVER_DEV_MODE=1"),
        ({"lora": {"max_lora_rank": 1, "target_modules": None}}, "up to rank 1, and model.lora.r is 2"),
        ({"lora": {"max_lora_rank": 16, "target_modules": ["q_proj"]}}, "without --lora-target-modules"),
        ({"updates_adapters": False}, "Start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"),
        ({"name": "org/other"}, "serves org/other, which is not the model that is trained, org/base"),
    ],
)
def test_a_server_that_was_started_otherwise_is_named_with_what_to_do(server, tmp_path, change, said):
    for name, value in change.items():
        setattr(server, name, value)
    with pytest.raises(EndpointError, match=said):
        connected(server, tmp_path, base="org/base")


def test_a_server_without_development_routes_is_named(server, tmp_path):
    without_development_routes(server)
    with pytest.raises(EndpointError, match=r"Refused: status 404: .* VLLM_SERVER_DEV_MODE=1 VLLM_ALLOW"):
        connected(server, tmp_path)


@pytest.mark.parametrize(("rank", "least"), [(2, 8), (8, 8), (9, 16), (200, 256)])
def test_the_command_that_starts_a_server_names_a_rank_that_vllm_takes(rank, least):
    assert f"vllm serve base --enable-lora --max-lora-rank {least} " in Adapter("base", rank, Path()).start


def test_bases_are_compared_by_their_weights_where_both_can_be_read(server, tmp_path, monkeypatch):
    mine, copy, other = (tmp_path / name for name in ("mine", "copy", "other"))
    tiny.make_model("llama").save_pretrained(mine)
    tiny.make_model("llama", seed=5).save_pretrained(other)
    shutil.copytree(mine, copy)
    for served in (mine, copy, "/not/here", "org/base"):
        server.name = str(served)
        assert connected(server, tmp_path, base=str(mine)) is not None
    server.name = str(other)
    with pytest.raises(
        EndpointError, match=f"serves {other}, which is not the model that is trained, {mine}"
    ):
        connected(server, tmp_path, base=str(mine))
    adapted().model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match=r"adapter is an adapter itself, which a server would need merged"):
        connected(server, tmp_path, base=str(tmp_path / "adapter"))


def test_where_weights_can_be_sent_a_server_for_weights_is_left_to_those(server, tmp_path):
    server.lora = None
    assert connected(server, tmp_path, or_weights=True) is None
    server.transfer = None
    with pytest.raises(EndpointError, match="takes no LoRA adapters"):
        connected(server, tmp_path, or_weights=True)
    server.lora, server.transfer = {"max_lora_rank": 16, "target_modules": None}, {"backend": "nccl"}
    assert connected(server, tmp_path, or_weights=True) is not None


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"modules_to_save": ["lm_head"]}, "it trains .*lm_head.modules_to_save"),
        ({"use_dora": True}, "it trains .*lora_magnitude_vector"),
        ({"bias": "all"}, None),
        ({"target_modules": ["embed_tokens"]}, "it trains .*lora_embedding_A"),
    ],
)
def test_what_a_server_would_leave_out_or_not_take_is_refused(server, tmp_path, settings, said):
    policy = tiny.policy("llama")
    config = LoraConfig(r=2, task_type="CAUSAL_LM", **{"target_modules": ["q_proj"], **settings})
    policy.model = get_peft_model(policy.model, config)
    client = connected(server, tmp_path)
    if said is None:  # a Llama has no biases
        assert VLLMSampler(policy, client, WORLD).client is client
        return
    with pytest.raises(InputError, match=rf"takes one plain LoRA adapter named default, .*{said}"):
        VLLMSampler(policy, client, WORLD)


def test_an_adapter_of_another_name_is_refused(server, tmp_path):
    policy = tiny.policy("llama")
    config = LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"])
    policy.model = get_peft_model(policy.model, config, adapter_name="mine")
    with pytest.raises(InputError, match="named default, and of this model it"):
        VLLMSampler(policy, connected(server, tmp_path), WORLD)


def test_prompts_that_leave_the_server_no_room_are_refused(server, tmp_path):
    policy = adapted()
    prompts = tiny.prompts(policy)  # of 7 tokens at most
    server.context = 14
    client = connected(server, tmp_path)
    refuse_longer(client, prompts, tiny.sampling(max_new_tokens=7), WORLD)
    refuse_longer(None, prompts, tiny.sampling(max_new_tokens=99), WORLD)
    with pytest.raises(InputError, match=r"a prompt of 7 tokens and a response of 8 need 15, .* 14"):
        refuse_longer(client, prompts, tiny.sampling(max_new_tokens=8), WORLD)
