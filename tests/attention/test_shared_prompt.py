"""Responses that share their prompt's computation, against each response with a prompt of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import tiny_models
import torch
from tiny_models import CAUSAL, ENCODER_DECODER
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import tiny
from cagsr.attention import ATTENTION
from cagsr.attention.capture import attention_forward
from cagsr.attention.rows import fold, of_each, unfold
from cagsr.attention.shared_prompt import SharedPrompt
from cagsr.attention.sharing import Sharing
from cagsr.config.schema import Sampling
from cagsr.errors import InputError, UnsupportedModelError
from cagsr.models import policy as policy_module
from cagsr.models import proof
from cagsr.models.load import make_policy
from cagsr.models.lora import with_lora
from cagsr.models.policy import Policy
from cagsr.types import Prompt, Rollout

MODELS = [*CAUSAL, *ENCODER_DECODER]
PROMPTS, RESPONSES, K = (11, 3, 5), (7, 1, 4, 2, 6, 3, 1, 5, 7), 3
ALONE = Sharing("a test compares")


def policy_of(name: str, dtype: torch.dtype = torch.float64, **changes: object) -> Policy:
    words = tiny._tokenizer("causal" if name in CAUSAL else "encoder-decoder")
    # Converted afterwards: eager attention, which a reading is checked against, has no float64.
    return make_policy(tiny_models.build(name, vocab_size=len(words), **changes), words).to(dtype)


def rolled(
    policy: Policy, prompts: tuple[int, ...] = PROMPTS, responses: tuple[int, ...] = RESPONSES
) -> Rollout:
    generator = torch.Generator().manual_seed(5)

    def ids(length: int) -> list[int]:
        return torch.randint(3, 100, (length,), generator=generator).tolist()

    given = [Prompt("", tuple(ids(length)), (), (), n) for n, length in enumerate(prompts)]
    mask = torch.arange(max(responses)) < torch.tensor(responses)[:, None]
    written = torch.randint(3, 100, mask.shape, generator=generator)
    return Rollout(
        given,
        *policy.collate(given),
        written,
        mask,
        torch.ones(len(mask), dtype=torch.bool),
        [""] * len(mask),
    )


@contextmanager
def alone(policy: Policy) -> Iterator[None]:
    sharing, policy.sharing = policy.sharing, ALONE
    try:
        yield
    finally:
        policy.sharing = sharing


def predicted(policy: Policy, rollout: Rollout) -> Tensor:
    """[R V] logits before each response token."""
    predictions = policy.predict(rollout)
    return predictions.logits[predictions.place[rollout.response_mask]]


def gradients(policy: Policy, logits: Tensor) -> dict[str, Tensor]:
    """Of a weighted sum, in which no two logits can change places."""
    policy.zero_grad()
    generator = torch.Generator().manual_seed(9)
    (logits * torch.randn(logits.shape, generator=generator).to(logits)).sum().backward()
    return {name: each.grad.clone() for name, each in policy.named_parameters() if each.grad is not None}


def close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    largest = max(value.abs().max() for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=tolerance, atol=tolerance * float(largest), msg=name
        )


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_gradients_are_those_of_each_response_alone_in_float64(name: str):
    policy = policy_of(name)
    assert policy.sharing == Sharing()
    rollout = rolled(policy)
    shared = predicted(policy, rollout)
    by_shared = gradients(policy, shared)
    with alone(policy):
        expected = predicted(policy, rollout)
        by_each = gradients(policy, expected)
    torch.testing.assert_close(shared, expected, rtol=1e-10, atol=1e-10)
    close(by_shared, by_each, 1e-6)  # norms of Llama's kind are float32 inside


@pytest.mark.parametrize("name", MODELS)
def test_logprobs_and_gradients_agree_to_1e_5_in_float32(name: str):
    policy = policy_of(name, torch.float32, **{"initializer_range": 0.2} if name in CAUSAL else {})
    rollout = rolled(policy)
    shared = policy(rollout).logprobs
    by_shared = gradients(policy, shared)
    with alone(policy):
        expected = policy(rollout).logprobs
        by_each = gradients(policy, expected)
    torch.testing.assert_close(shared, expected, rtol=1e-5, atol=1e-5)
    close(by_shared, by_each, 1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_attention_is_that_of_each_response_alone(name: str):
    policy = policy_of(name)
    rollout = rolled(policy)
    shared = policy.observe(rollout)
    with alone(policy):
        expected = policy.observe(rollout)
    for field in vars(shared):
        # Float32 results of float64 models; attention itself is added up in float32.
        torch.testing.assert_close(
            getattr(shared, field), getattr(expected, field), rtol=1e-5, atol=2e-6, msg=field
        )


@pytest.mark.parametrize("name", ["llama", "mistral", "t5"])
@pytest.mark.parametrize(
    ("prompts", "responses"),
    [
        ((11, 3, 5), (1,) * 9),
        ((11, 11, 11), (7,) * 9),
        ((1, 1, 1), RESPONSES),
        ((11, 3, 5), (7, 1, 4)),
        ((13,), (2, 3, 5, 7, 1)),
    ],
    ids=["one token each", "nothing ragged", "prompts of one token", "K = 1", "one group"],
)
def test_corners(name: str, prompts: tuple[int, ...], responses: tuple[int, ...]):
    policy = policy_of(name)
    rollout = rolled(policy, prompts, responses)
    shared, seen = predicted(policy, rollout), policy.observe(rollout).attention
    with alone(policy):
        torch.testing.assert_close(shared, predicted(policy, rollout), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(seen, policy.observe(rollout).attention, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_a_prompt_of_which_a_piece_is_taken_away_is_as_if_it_had_never_been_there(name: str):
    policy = policy_of(name)
    rollout = rolled(policy, (11, 7, 5))
    holes = rollout.prompt_mask.clone()
    holes[:, 6:9] = False
    shorter = [
        replace(prompt, ids=tuple(row[mask].tolist()))
        for prompt, row, mask in zip(rollout.prompts, rollout.prompt_ids, holes, strict=True)
    ]
    ids, mask = policy.collate(shorter)
    with alone(policy):
        expected = predicted(policy, replace(rollout, prompt_ids=ids, prompt_mask=mask))
    found = predicted(policy, replace(rollout, prompt_mask=holes))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(expected, predicted(policy, rollout), atol=1e-2)


def test_no_other_response_and_no_later_token_is_seen():
    """What one response says changes its own later predictions and nothing else."""
    policy = policy_of("llama")
    rollout = rolled(policy)
    before = predicted(policy, rollout)
    changed = rollout.response_ids.clone()
    changed[4, 2] = (changed[4, 2] + 1) % 100
    after = predicted(policy, replace(rollout, response_ids=changed))
    moved = torch.zeros(rollout.response_mask.shape, dtype=torch.bool)
    moved[rollout.response_mask] = (before - after).abs().amax(-1) > 0
    expected = torch.zeros_like(moved)
    expected[4, 3:6] = True
    assert torch.equal(moved, expected)


@pytest.mark.parametrize("name", ["llama", "qwen3", "t5", "bart"])
def test_trap_09_gradient_checkpointing_recomputes_with_the_same_sharing(name: str):
    policy = policy_of(name, **{"dropout_rate": 0.0} if name == "t5" else {})
    rollout = rolled(policy)
    expected = gradients(policy, predicted(policy, rollout))
    policy.model.activation_checkpointing_enable({"use_reentrant": False})
    policy.train()
    close(gradients(policy, predicted(policy, rollout)), expected, 1e-6)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_lora_trains_through_a_shared_prompt(name: str):
    policy = policy_of(name)
    torch.manual_seed(0)
    with_lora(policy, r=3, alpha=7, target_modules={"t5": ["q", "v"]}.get(name, ["q_proj", "v_proj"]))
    with torch.no_grad():
        for key, parameter in policy.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=0.3)  # an adapter begins as nothing
    rollout = rolled(policy)
    shared = gradients(policy, predicted(policy, rollout))
    with alone(policy):
        expected = gradients(policy, predicted(policy, rollout))
    assert all("lora_" in key for key in shared)
    close(shared, expected, 1e-6)  # PEFT keeps its adapter in float32


@pytest.mark.parametrize("name", ["llama", "qwen2", "t5"])
def test_bfloat16_models_share_to_their_own_precision(name: str):
    policy = policy_of(name, torch.bfloat16, **{"initializer_range": 0.1} if name in CAUSAL else {})
    assert policy.sharing == Sharing()
    rollout = rolled(policy)
    with torch.no_grad():
        shared = policy(rollout).logprobs
        with alone(policy):
            torch.testing.assert_close(shared, policy(rollout).logprobs, rtol=0.05, atol=0.05)
    assert policy.observe(rollout).attention.dtype == torch.float32


def test_under_autocast_a_cpu_computes_attention_in_float32(monkeypatch):
    policy = policy_of("llama", torch.float32, initializer_range=0.1)
    rollout, types = rolled(policy), set()

    def watched(query, *given, **named):
        types.add(query.dtype)
        return sdpa(query, *given, **named)

    sdpa = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    with torch.autocast("cpu", torch.bfloat16):
        scored = policy(rollout).logprobs
        policy.sample(rollout.prompts, Sampling(candidates=2, max_new_tokens=3))
    assert types == {torch.float32}
    assert scored.requires_grad


def test_autocast_shares_to_its_own_precision():
    policy = policy_of("llama", torch.float32, initializer_range=0.1)
    rollout = rolled(policy)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        shared, seen = policy(rollout).logprobs, policy.observe(rollout).attention
        with alone(policy):
            torch.testing.assert_close(shared, policy(rollout).logprobs, rtol=0.05, atol=0.05)
            torch.testing.assert_close(seen, policy.observe(rollout).attention, rtol=0, atol=0.01)


def test_each_prompt_goes_through_the_linear_layers_once():
    policy = policy_of("llama")
    rollout, seen = rolled(policy), []
    policy.model.model.layers[0].mlp.register_forward_hook(
        lambda _, given, __: seen.append(given[0].shape[:2])
    )
    policy(rollout)
    # Prompts, and of each response all but its last token.
    assert seen == [(1, sum(PROMPTS) + sum(RESPONSES) - len(RESPONSES))]
    policy = policy_of("bart")
    rollout, seen = rolled(policy), []
    policy.model.model.decoder.layers[0].encoder_attn.k_proj.register_forward_hook(
        lambda _, given, __: seen.append(given[0].shape[:2])
    )
    policy(rollout)
    assert seen == [(len(PROMPTS), max(PROMPTS))]


def test_places_count_tokens_as_they_stand_in_the_row():
    prompt_mask = torch.tensor([[0, 1, 1], [1, 1, 1]]).bool()
    response_mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]]).bool()
    shared = SharedPrompt(prompt_mask, response_mask)
    row = shared.row(torch.tensor([[0, 11, 12], [21, 22, 23]]), torch.arange(100, 112).view(4, 3))
    assert row.tolist() == [[11, 12, 21, 22, 23, 100, 106, 107, 109]]
    assert shared.positions.tolist() == [[0, 1, 0, 1, 2, 2, 3, 4, 3]]
    assert shared.predicting.tolist() == [1, 4, 5, 6, 7, 8]
    assert shared.place.tolist() == [[0, 2, 0], [0, 0, 0], [1, 3, 4], [1, 5, 0]]
    assert shared.longest == 5


def test_folding_puts_the_responses_of_a_group_one_after_another():
    rows = torch.arange(2 * 3 * 5 * 7).view(6, 5, 7, 1)
    folded = fold(rows, 3)
    assert folded.shape == (2, 5, 21, 1)
    assert torch.equal(folded[1, 4, 7:14], rows[4, 4])
    assert torch.equal(unfold(folded.transpose(1, 2), 3), rows.transpose(1, 2))
    assert of_each(3, slice(2, 4), 21, rows.device).tolist() == [2, 3, 9, 10, 16, 17]


# What cannot be shared ------------------------------------------------------------------------------------------


WORDS = {"vocab_size": len(tiny._tokenizer("causal"))}


def proved(model: PreTrainedModel) -> Sharing:
    return make_policy(model, tiny._tokenizer("causal")).sharing


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_mixes_tokens_outside_attention_is_named_and_computes_prompts_again(dtype: torch.dtype):
    assert proved(tiny_models.build("llama", **WORDS).to(dtype)) == Sharing()
    settings = tiny_models.GROUPED | WORDS | {"layer_types": ["conv", "full_attention", "conv"]}
    config = AutoConfig.for_model("lfm2", **settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION, dtype=dtype).eval()
    sharing = proved(model)
    assert not sharing.possible
    assert "its scores would be off by" in str(sharing)


def test_a_model_that_mixes_tokens_by_what_no_cache_keeps_is_refused():
    model = tiny_models.build("llama", **WORDS)
    # Each token adds a little of what stands before it in the row.
    model.model.layers[2].mlp.register_forward_hook(lambda _, __, output: output + 0.2 * output.cumsum(1))
    with pytest.raises(UnsupportedModelError, match="llama computes 10 tokens otherwise than alone"):
        proved(model)


def test_a_model_that_does_not_hand_on_the_keyword_is_named():
    shape = tiny_models.SHAPE | WORDS | {"use_qkv_bias": False}
    config = AutoConfig.for_model(
        "stablelm", **{key: shape[key] for key in shape if key != "initializer_range"}
    )
    sharing = proved(AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION))
    assert (
        sharing.reason
        == "StableLmForCausalLM does not hand keywords on to its attention. Choose another model."
    )
    assert str(sharing).startswith("each response computes its prompt again (")


def test_queries_that_are_scaled_by_their_place_in_the_row_are_named():
    model = tiny_models.build("llama", **WORDS)
    model.config.attn_temperature_tuning = True
    assert "scales its queries" in str(proved(model))


def test_a_mask_that_a_model_makes_for_itself_is_not_ignored():
    attention = nn.Module()
    attention.is_causal = True
    shared = SharedPrompt(torch.ones(1, 3).bool(), torch.ones(1, 2).bool())
    states = torch.randn(1, 5, 4, 6)
    for mask in (None, torch.zeros(1, 1, 4, 4)):
        with pytest.raises(UnsupportedModelError, match="makes another mask than it is given"):
            attention_forward(attention, states, states, states, mask, shared_prompt=shared)


def test_a_model_that_fails_alone_is_refused():
    model = tiny_models.build("llama", **WORDS)
    model.lm_head.register_forward_hook(lambda _, __, logits: 1 / 0 if len(logits) == 1 else logits)
    with pytest.raises(
        UnsupportedModelError, match="in an unpadded row: ZeroDivisionError: division by zero"
    ):
        proved(model)


def test_memory_that_runs_out_in_the_probe_is_no_reason(monkeypatch: pytest.MonkeyPatch):
    def hungry(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(SharedPrompt, "row", hungry)
    with pytest.raises(torch.OutOfMemoryError):
        proved(tiny_models.build("llama", **WORDS))


def olmoe(window: int) -> PreTrainedModel:
    """It tells its attention function of a window, makes a mask without one, and its cache forgets beyond it."""
    shape = (
        tiny_models.GROUPED | WORDS | {"sliding_window": window, "num_experts": 3, "num_experts_per_tok": 2}
    )
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model("olmoe", **shape), attn_implementation=ATTENTION
    ).eval()


def test_a_window_is_tried_before_it_is_believed_and_limits_what_is_shared_otherwise(
    monkeypatch: pytest.MonkeyPatch,
):
    assert policy_of("mistral", sliding_window=17).sharing == Sharing()
    monkeypatch.setattr(proof, "LONGEST_PROBE", 16)
    assert policy_of("mistral", sliding_window=17).sharing == Sharing(longest=17)
    silent = tiny_models.build("llama", **WORDS)
    silent.config.sliding_window = 19
    assert proved(silent) == Sharing(longest=19)
    monkeypatch.undo()
    assert proved(silent) == Sharing(), "it is tried, and hides nothing"


def test_a_window_beyond_which_sampling_and_scoring_differ_is_the_models_context():
    policy = make_policy(olmoe(17), tiny._tokenizer("causal"))
    assert (policy.sharing, policy.context) == (Sharing(), 17)
    assert [str(tried)[:20] for tried in policy.proof[-4:-1]] == [
        "shared, 23 tokens: n",
        "padded, 23 tokens: n",
        "prompt by prompt, 23",
    ]
    with pytest.raises(InputError, match="the model's context has 17"):
        policy.logprobs(rolled(policy))


def test_beyond_its_limit_a_model_scores_and_samples_each_response_alone(monkeypatch: pytest.MonkeyPatch):
    policy, calls = policy_of("llama"), []
    policy.sharing = Sharing(longest=17)
    for owner, name in ((policy, "_one_by_one"), (policy_module, "generate")):
        plain = getattr(owner, name)
        monkeypatch.setattr(
            owner,
            name,
            lambda *given, name=name, plain=plain, **named: calls.append(name) or plain(*given, **named),
        )
    policy(rolled(policy, (11, 3, 5), (6,) * 9))
    policy.sample(rolled(policy).prompts, tiny.sampling(max_new_tokens=6))
    assert not calls
    policy(rolled(policy, (11, 3, 5), (7,) * 9))
    policy.sample(rolled(policy).prompts, tiny.sampling(max_new_tokens=7))
    # transformers' own loop reads no attention: whoever wants it asks part by part.
    _, seen = policy.sample_observed(rolled(policy).prompts, tiny.sampling(max_new_tokens=7))
    assert seen is None
    assert calls == ["_one_by_one", "generate", "generate"]


def test_a_prompt_without_tokens_is_refused_by_its_index():
    policy = policy_of("llama")
    prompts = rolled(policy).prompts
    with pytest.raises(InputError, match="the prompt of index 1 has no tokens"):
        policy.sample([prompts[0], replace(prompts[1], ids=())], tiny.SHORT)


def test_the_probe_leaves_a_model_as_it_was():
    model = tiny_models.build("llama", **WORDS)
    model.train()
    proved(model)
    assert all(module.training for module in model.modules())
