"""What a policy says about given responses, against the plainest computation of the same, one response at a time."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import tiny
from cagsr.attention.naive import eager_weights
from cagsr.config.schema import Lora
from cagsr.models.load import save_model
from cagsr.models.load_policy import load_policy
from cagsr.models.lora import with_lora
from cagsr.models.policy import Policy
from cagsr.models.reference import Reference
from cagsr.types import Prompt, Rollout

ARCHITECTURES = ("t5", "bart", "bart-forced", "llama", "qwen2", "mistral")
K = 3


def rolled(policy: Policy) -> Rollout:
    """Ragged prompts and ragged responses, as the policy itself wrote them."""
    rollout = policy.sample(tiny.prompts(policy), tiny.SHORT, seed=3)
    lengths = rollout.lengths.tolist()
    assert len(set(lengths)) > 2, "the test needs ragged responses"
    assert 1 in lengths, "the test needs a response of one token"
    return rollout


def responses(rollout: Rollout) -> list[tuple[int, Prompt, list[int]]]:
    """Row, prompt and response tokens of each row: nothing padded."""
    return [
        (row, rollout.prompts[row // K], rollout.response_ids[row][rollout.response_mask[row]].tolist())
        for row in range(len(rollout.responses))
    ]


@torch.no_grad()
def logits_by_hand(policy: Policy, prompt: Prompt, written: list[int]) -> Tensor:
    """[T V] logits before each response token, every token by a fresh uncached pass over what came before it."""
    rows = []
    for t in range(len(written)):
        # The model is shown no token that is not yet written.
        if policy.model.config.is_encoder_decoder:
            shown = tiny.inputs_of(policy, prompt, [*written[:t], 0])
        else:
            shown = tiny.inputs_of(policy, prompt, written[:t])
        rows.append(policy.model(**shown, use_cache=False).logits[0, -1])
    return torch.stack(rows)


@torch.no_grad()
def attention_by_hand(policy: Policy, prompt: Prompt, written: list[int]) -> Tensor:
    """[T S] of one unpadded response from transformers' own eager attention weights."""
    weights = eager_weights(policy.model, **tiny.inputs_of(policy, prompt, written))
    chosen = torch.stack([weights[layer] for layer in policy.readable.layers]).mean((0, 1, 2))
    if policy.model.config.is_encoder_decoder:
        return chosen[-len(written) :]
    size = len(prompt.ids)
    return chosen[size - 1 : size - 1 + len(written), :size]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_trap_15_logprobs_entropy_and_confidence_are_those_of_the_step_by_step_model(name):
    policy = tiny.policy(name, extra_eos=20, temperature=0.7)
    rollout = rolled(policy)
    with torch.no_grad():
        scored = policy(rollout)
    observed = policy.observe(rollout)
    assert scored.values is None
    for row, prompt, written in responses(rollout):
        length = len(written)
        logprobs = (logits_by_hand(policy, prompt, written).double() / 0.7).log_softmax(-1)
        taken = logprobs[range(length), written]
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        expected = {
            "logprobs": taken,
            "entropy": entropy,
            "confidence": (taken - logprobs.max(-1).values).exp(),
            "certainty": -logprobs.mean(-1) - torch.tensor(float(logprobs.shape[-1])).log(),
        }
        for field, values in expected.items():
            found = getattr(observed, field)[row]
            torch.testing.assert_close(found[:length].double(), values, rtol=2e-5, atol=2e-5, msg=field)
            assert not found[length:].any()
        torch.testing.assert_close(scored.logprobs[row, :length].double(), taken, rtol=2e-5, atol=2e-5)
        torch.testing.assert_close(scored.entropy[row, :length].double(), entropy, rtol=2e-5, atol=2e-5)
        assert not scored.logprobs[row, length:].any()
        assert not scored.entropy[row, length:].any()
    written_steps = rollout.response_mask
    assert (observed.confidence[written_steps] > 0).all()
    assert (observed.confidence[written_steps] <= 1).all()


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("layers", ["all", "last"])
def test_trap_15_attention_rows_are_the_queries_that_predict_each_token(name, layers):
    policy = tiny.policy(name, extra_eos=20, layers=layers)
    rollout = rolled(policy)
    attention = policy.observe(rollout).attention
    assert attention.shape == (12, 7, 7)
    shifted_would_pass = True
    for row, prompt, written in responses(rollout):
        expected = attention_by_hand(policy, prompt, written)
        columns = rollout.prompt_mask[row // K]
        found = attention[row, : len(written)]
        torch.testing.assert_close(found[:, columns], expected, rtol=1e-4, atol=1e-5)
        assert not found[:, ~columns].any()
        assert not attention[row, len(written) :].any()
        if len(written) > 1:
            shifted_would_pass &= torch.allclose(found[1:, columns], expected[:-1], atol=1e-3)
    assert not shifted_would_pass, "the weights are too uniform for this test to see a shift"


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_logprobs_alone_ask_for_no_states_and_are_the_same(name):
    policy = tiny.policy(name, extra_eos=20, critic=True)
    rollout, asked = rolled(policy), []
    predict = policy.predict
    policy.predict = lambda rollout, hidden=False: asked.append(hidden) or predict(rollout, hidden)
    found = policy.logprobs(rollout)
    assert asked == [False]
    with torch.no_grad():
        assert torch.equal(found, policy(rollout).logprobs)


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_prompt_logprobs_are_the_likelihood_of_each_prompt_token_at_each_step(name):
    policy = tiny.policy(name, extra_eos=20)
    rollout = rolled(policy)
    found = policy.observe(rollout).prompt_logprobs
    for row, prompt, written in responses(rollout):
        logprobs = logits_by_hand(policy, prompt, written).log_softmax(-1)
        columns = rollout.prompt_mask[row // K]
        for t in range(len(written)):
            expected = torch.stack([logprobs[t, token] for token in prompt.ids])
            torch.testing.assert_close(found[row, t, columns], expected, rtol=2e-5, atol=2e-5)
        assert not found[row, :, ~columns].any()
        assert not found[row, len(written) :].any()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_trap_10_padded_logprobs_equal_unpadded_ones_and_so_do_their_gradients(name):
    policy = tiny.policy(name, extra_eos=20, critic=True)
    with torch.no_grad():
        policy.value_head.linear.weight.copy_(
            torch.linspace(-1, 1, policy.value_head.linear.in_features)[None]
        )
    rollout = rolled(policy)
    together = policy(rollout)
    together.logprobs.sum().backward()
    gradients = [parameter.grad.clone() for parameter in policy.model.parameters()]
    policy.zero_grad()
    for index, part in enumerate(rollout.split(1)):
        assert part.prompt_mask.all(), "a group of its own carries no prompt padding"
        rows, width = slice(K * index, K * index + K), part.response_ids.shape[1]
        alone = policy(part)
        alone.logprobs.sum().backward()
        for one, many in zip(alone, together, strict=True):
            torch.testing.assert_close(one, many[rows, :width], rtol=2e-5, atol=2e-5)
    for parameter, expected in zip(policy.model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["t5", "bart", "bart-forced", "llama"])
def test_trap_10_what_stands_at_padding_changes_nothing(name):
    policy = tiny.policy(name, extra_eos=20)
    rollout = rolled(policy)
    dirty = replace(
        rollout,
        prompt_ids=rollout.prompt_ids.masked_fill(~rollout.prompt_mask, 33),
        response_ids=rollout.response_ids.masked_fill(~rollout.response_mask, 44),
    )
    clean, dirtied = policy.observe(rollout), policy.observe(dirty)
    for name in vars(clean):
        torch.testing.assert_close(getattr(dirtied, name), getattr(clean, name), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["t5", "bart", "bart-forced"])
def test_trap_20_the_response_never_enters_the_encoder_and_the_decoder_starts_with_its_own_token(name):
    policy = tiny.policy(name, extra_eos=20)
    seen = {"encoder": [], "decoder": []}
    handles = [
        module.register_forward_hook(
            lambda module, arguments, named, output, side=side: seen[side].append(named["input_ids"].clone()),
            with_kwargs=True,
        )
        for side, module in (("encoder", policy.model.get_encoder()), ("decoder", policy.model.get_decoder()))
    ]
    rollout = rolled(policy)
    first_step = seen["decoder"][0]
    seen["decoder"].clear()
    policy(rollout)
    for handle in handles:
        handle.remove()
    pad, eos = policy.tokenizer.pad_token_id, policy.tokenizer.eos_token_id
    prefix = {"t5": [pad], "bart": [eos], "bart-forced": [eos, tiny.FORCED]}[name]
    assert first_step.tolist() == [prefix] * 12
    for ids in seen["encoder"]:
        assert torch.equal(ids, rollout.prompt_ids)
    (decoder,) = seen["decoder"]
    assert decoder[:, : len(prefix)].tolist() == [prefix] * 12
    assert torch.equal(decoder[:, len(prefix) :], rollout.response_ids[:, :-1])


def test_trap_15_values_belong_to_the_state_before_each_token():
    for name in ("t5", "bart-forced", "llama"):
        policy = tiny.policy(name, extra_eos=20, critic=True)
        assert not policy(rolled(policy)).values.any(), "a new critic says 0"
        weight = torch.linspace(-1, 1, 20)
        with torch.no_grad():
            policy.value_head.linear.weight.copy_(weight[None])
            policy.value_head.linear.bias.fill_(0.3)
        rollout = rolled(policy)
        values = policy(rollout).values
        for row, prompt, written in responses(rollout):
            with torch.no_grad():
                output = policy.model(**tiny.inputs_of(policy, prompt, written), output_hidden_states=True)
            if policy.model.config.is_encoder_decoder:
                hidden = output.decoder_hidden_states[-1][0, -len(written) :]
            else:
                hidden = output.hidden_states[-1][0, len(prompt.ids) - 1 : -1]
            expected = hidden @ weight + 0.3
            torch.testing.assert_close(values[row, : len(written)], expected, rtol=1e-4, atol=1e-4)
            assert not values[row, len(written) :].any()


@pytest.mark.parametrize("name", ["t5", "bart-forced", "llama"])
def test_responses_given_as_text_are_ended_and_cut(name):
    policy = tiny.policy(name)
    words = policy.tokenizer.convert_ids_to_tokens([5, 7, 11, 13, 17])
    rollout = policy.given(tiny.prompts(policy, (3, 5)), [" ".join(words[:2]), " ".join(words)], limit=4)
    eos, pad = policy.eos_ids[0], policy.pad_id
    assert rollout.response_ids.tolist() == [[5, 7, eos, pad], [5, 7, 11, 13]]
    assert rollout.response_mask.int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert rollout.finished.tolist() == [True, False]
    assert rollout.group_size == 1


@pytest.mark.parametrize("name", ["t5", "bart", "llama"])
def test_trap_24_the_reference_stays_as_it_was_while_the_policy_moves(name):
    policy = tiny.policy(name, extra_eos=20)
    rollout = rolled(policy)
    reference = Reference(policy)
    before, own = reference.observe(rollout), policy.observe(rollout)
    torch.testing.assert_close(before.attention, own.attention, rtol=0, atol=0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1)
    after = reference.observe(rollout)
    for field in vars(before):
        torch.testing.assert_close(getattr(after, field), getattr(before, field), rtol=0, atol=0, msg=field)
    moved = policy.observe(rollout)
    assert not torch.allclose(moved.attention, own.attention, atol=1e-3)
    assert not torch.allclose(moved.logprobs, own.logprobs, atol=1e-3)


def lora_policy(name: str, **settings) -> Policy:
    policy = tiny.policy(name, extra_eos=20, **settings)
    torch.manual_seed(0)
    with_lora(policy, r=3, alpha=7, target_modules={"t5": ["q", "v"]}.get(name, ["q_proj", "v_proj"]))
    return policy


@pytest.mark.parametrize("name", ["t5", "bart", "llama"])
def test_lora_trains_the_adapter_alone_and_its_reference_is_the_start(name):
    plain = tiny.policy(name, extra_eos=20)
    policy = lora_policy(name, critic=True)
    trained = {key for key, parameter in policy.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_" in key or key.startswith("value_head") for key in trained)

    rollout = rolled(policy)
    assert rollout.responses == rolled(plain).responses
    reference, start = Reference(policy), plain.observe(rollout)
    weights = copy.deepcopy(policy.state_dict())
    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=3.0)
    for _ in range(3):
        optimizer.zero_grad()
        scored = policy(rollout)
        (-scored.logprobs.mean() + (scored.values - 1).square().mean()).backward()
        optimizer.step()
    for key, value in policy.state_dict().items():
        assert torch.equal(value, weights[key]) == (key not in trained), key

    off = reference.observe(rollout)
    for field in vars(start):
        torch.testing.assert_close(getattr(off, field), getattr(start, field), rtol=1e-6, atol=1e-6)
    on = policy.observe(rollout)
    assert not torch.allclose(on.logprobs, off.logprobs, atol=1e-2)
    torch.testing.assert_close(on.logprobs, policy(rollout).logprobs.detach(), rtol=1e-4, atol=1e-4)
    # Reading through the adapter leaves it switched on and trainable.
    assert {key for key, parameter in policy.named_parameters() if parameter.requires_grad} == trained


def test_rslora_divides_by_the_root_of_the_rank():
    added = []
    for rooted in (False, True):
        policy = tiny.policy("llama")
        with_lora(policy, r=4, alpha=6, target_modules=["q_proj"], use_rslora=rooted)
        for name, weight in policy.model.named_parameters():
            if ".lora_" in name:
                torch.nn.init.ones_(weight)
        module = next(part for part in policy.model.modules() if hasattr(part, "get_delta_weight"))
        added.append(module.get_delta_weight("default"))
    # Ones times ones over a rank of 4, times 6 / 4, and times 6 / 2.
    assert torch.equal(added[0], torch.full_like(added[0], 6.0))
    assert torch.equal(added[1], torch.full_like(added[1], 12.0))


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_dora_begins_as_the_base_trains_lengths_too_and_comes_back_as_it_was_saved(name, tmp_path):
    tiny.save_models(tmp_path)
    plain = load_policy(tmp_path / name)
    targets = {"t5": ["q", "v"], "llama": ["q_proj", "v_proj"]}[name]
    policy = load_policy(tmp_path / name, lora=Lora(r=3, alpha=7, target_modules=targets, use_dora=True))
    trained = [key for key, weight in policy.named_parameters() if weight.requires_grad]
    assert sum("magnitude" in key for key in trained) == sum("lora_A" in key for key in trained) > 0
    rollout, reference = plain.sample(tiny.prompts(plain), tiny.SHORT, seed=3), Reference(policy)
    start = plain.logprobs(rollout)
    torch.testing.assert_close(policy.logprobs(rollout), start, rtol=1e-5, atol=1e-5)
    optimizer = torch.optim.SGD([weight for weight in policy.parameters() if weight.requires_grad], lr=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        (-policy(rollout).logprobs.mean()).backward()
        optimizer.step()
    moved = policy.logprobs(rollout)
    assert not torch.allclose(moved, start, atol=1e-2)
    torch.testing.assert_close(reference.observe(rollout).logprobs, start, rtol=1e-5, atol=1e-5)
    save_model(policy, tmp_path / "model")
    assert (tmp_path / "model/adapter_config.json").is_file()
    again = load_policy(tmp_path / "model")
    torch.testing.assert_close(again.logprobs(rollout), moved, rtol=1e-4, atol=1e-4)
