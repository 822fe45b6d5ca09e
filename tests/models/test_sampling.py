"""Sampling: the distribution drawn from, where a response ends, and that batches do not matter."""

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, T5Config, T5GemmaConfig

import tiny
from cagsr.attention import ATTENTION
from cagsr.attention.sharing import Sharing
from cagsr.config.schema import Sampling
from cagsr.errors import NumericsError
from cagsr.models.load import make_policy
from cagsr.models.sampling import InverseTransform, response_mask, uniforms

ARCHITECTURES = ("t5", "bart", "bart-forced", "llama", "qwen2", "mistral")
DRAWS = 40_000


def shares(logits: Tensor, sampling: Sampling) -> Tensor:
    """How often each token was drawn from one distribution."""
    uniform = torch.rand(DRAWS, 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    scores = InverseTransform(sampling, uniform)(
        torch.zeros(DRAWS, 1).long(), logits.expand(DRAWS, -1).clone()
    )
    chosen = scores.argmax(-1)
    # Exactly one token is left, so that greedy decoding takes it whatever else it does.
    assert (scores == 0).sum(-1).eq(1).all()
    assert scores.isneginf().sum(-1).eq(len(logits) - 1).all()
    return torch.bincount(chosen, minlength=len(logits)).double() / DRAWS


LOGITS = torch.tensor([0.5, 2.0, -1.0, 1.2, 0.0, -3.0, 1.9])


def close(found: Tensor, expected: Tensor) -> bool:
    """Within 4.5 standard deviations of what DRAWS draws give, and nothing where nothing belongs."""
    expected = expected.double()
    spread = (expected * (1 - expected) / DRAWS).sqrt()
    return bool(((found - expected).abs() <= 4.5 * spread).all())


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_tokens_are_drawn_from_the_softmax_at_the_temperature(temperature):
    found = shares(LOGITS, Sampling(temperature=temperature))
    assert close(found, (LOGITS / temperature).softmax(-1))
    assert not close(found, (LOGITS / (1.1 * temperature)).softmax(-1))


def test_top_k_draws_among_the_k_likeliest():
    kept = torch.tensor([False, True, False, True, False, False, True])
    expected = LOGITS.masked_fill(~kept, -torch.inf).softmax(-1)
    assert close(shares(LOGITS, Sampling(top_k=3)), expected)


def test_top_p_draws_among_the_fewest_tokens_that_hold_p():
    # Sorted probabilities: .36 .33 .16 .08 ...: two hold .6, three hold .8.
    probabilities = LOGITS.softmax(-1)
    assert probabilities[[1, 6]].sum() > 0.6 > probabilities[1]
    for p, kept in ((0.6, [1, 6]), (0.8, [1, 3, 6])):
        expected = torch.zeros(7).index_put((torch.tensor(kept),), probabilities[kept])
        assert close(shares(LOGITS, Sampling(top_p=p)), expected / expected.sum())


def test_tokens_of_probability_zero_are_never_drawn():
    logits = torch.tensor([-torch.inf, 1.0, -torch.inf, 0.0, -torch.inf])
    edges = torch.tensor([[0.0], [1 - 2**-53]], dtype=torch.float64)
    scores = InverseTransform(Sampling(), edges)(torch.zeros(2, 1).long(), logits.expand(2, -1).clone())
    assert scores.argmax(-1).tolist() == [1, 3]


def test_uniform_numbers_belong_to_the_prompt_and_the_seed():
    policy = tiny.policy("llama")
    prompts = tiny.prompts(policy)
    together = uniforms(prompts, tiny.SHORT, seed=11).view(4, 3, 7)
    for order in ([2], [3, 1], [1, 0, 2, 3]):
        alone = uniforms([prompts[i] for i in order], tiny.SHORT, seed=11).view(len(order), 3, 7)
        assert torch.equal(alone, together[order])
    assert not torch.equal(together, uniforms(prompts, tiny.SHORT, seed=12).view(4, 3, 7))
    assert together.unique().numel() == together.numel()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_trap_10_a_prompt_alone_gets_the_responses_it_gets_in_any_batch(name):
    policy = tiny.policy(name, extra_eos=20)
    prompts = tiny.prompts(policy)
    together = policy.sample(prompts, tiny.SHORT, seed=3)
    assert together.lengths.unique().numel() > 1, "the test needs ragged responses"
    for order in ([0], [1], [2], [3, 0], [2, 1, 3, 0]):
        part = policy.sample([prompts[i] for i in order], tiny.SHORT, seed=3)
        for position, i in enumerate(order):
            rows, expected = slice(3 * position, 3 * position + 3), slice(3 * i, 3 * i + 3)
            assert part.responses[rows] == together.responses[expected]
            assert part.lengths[rows].tolist() == together.lengths[expected].tolist()
            assert part.finished[rows].tolist() == together.finished[expected].tolist()
    assert policy.sample(prompts, tiny.SHORT, seed=4).responses != together.responses


def test_trap_14_the_written_eos_is_kept_and_the_padding_after_it_is_not_when_pad_is_eos():
    ids = torch.tensor([[7, 5, 2, 2, 2], [2, 2, 2, 2, 2], [3, 4, 5, 6, 7], [3, 4, 5, 6, 2]])
    mask, finished = response_mask(ids, [2])
    assert mask.sum(-1).tolist() == [3, 1, 5, 5]
    assert mask.int().tolist()[0] == [1, 1, 1, 0, 0]
    assert finished.tolist() == [True, True, False, True]


def test_trap_14_any_of_several_eos_ids_ends_a_response():
    ids = torch.tensor([[7, 9, 2, 0, 0], [7, 2, 9, 0, 0], [7, 7, 7, 7, 7]])
    mask, finished = response_mask(ids, [2, 9])
    assert mask.sum(-1).tolist() == [2, 2, 5]
    assert finished.tolist() == [True, True, False]


@pytest.mark.parametrize("name", ["t5", "bart", "llama"])
def test_trap_14_responses_end_at_the_first_of_several_eos_ids_and_truncated_ones_are_known(name):
    policy = tiny.policy(name, extra_eos=20)
    policy.pad_id = policy.eos_ids[0]
    rollout = policy.sample(tiny.prompts(policy), tiny.sampling(candidates=5), seed=3)
    ends = torch.isin(rollout.response_ids, torch.tensor(policy.eos_ids))
    for row in range(20):
        length = int(rollout.lengths[row])
        assert rollout.response_mask[row].tolist() == [t < length for t in range(7)]
        assert not ends[row, : length - 1].any()
        assert bool(ends[row, length - 1]) == bool(rollout.finished[row])
        assert rollout.finished[row] or length == 7
    assert 0 < rollout.finished.sum() < 20
    assert rollout.response_ids[~rollout.response_mask].eq(policy.pad_id).all()


def force(policy, ids):
    """A policy that writes these tokens at each step, whatever it reads."""

    def hook(module, inputs, output):
        logits = torch.full_like(output, -30.0)
        logits[..., ids] = 0.0
        return logits

    return policy.model.get_output_embeddings().register_forward_hook(hook)


@pytest.mark.parametrize("sharing", [Sharing(), Sharing("a test compares")])
@pytest.mark.parametrize("name", ["t5", "llama"])
def test_an_immediate_eos_is_a_response_of_one_token_and_no_text(name, sharing):
    policy = tiny.policy(name)
    policy.sharing = sharing
    with force(policy, [policy.eos_ids[0]]):
        rollout = policy.sample(tiny.prompts(policy), tiny.SHORT)
    assert rollout.response_ids.tolist() == [[policy.eos_ids[0]]] * 12
    assert rollout.lengths.tolist() == [1] * 12
    assert rollout.finished.all()
    assert rollout.responses == [""] * 12


@pytest.mark.parametrize("name", ["bart", "bart-forced", "llama"])
def test_no_response_ends_before_min_new_tokens(name):
    policy = tiny.policy(name, extra_eos=20)
    free = policy.sample(tiny.prompts(policy), tiny.SHORT, seed=3)
    held = policy.sample(tiny.prompts(policy), tiny.sampling(min_new_tokens=5), seed=3)
    assert free.lengths.min() < 5
    assert held.lengths.min() > 5 - 1
    assert held.finished.any()


def greedy_by_hand(policy, prompt, steps):
    """Argmax of the whole uncached model, one token at a time, one prompt, no padding."""
    ids = torch.tensor([prompt.ids])
    written = []
    with torch.no_grad():
        for _ in range(steps):
            past = torch.tensor([written], dtype=torch.long)
            if policy.model.config.is_encoder_decoder:
                config = policy.model.generation_config
                forced = [] if config.forced_bos_token_id is None else [config.forced_bos_token_id]
                prefix = torch.tensor([[config.decoder_start_token_id, *forced]])
                decoder = torch.cat([prefix, past], 1)
                logits = policy.model(input_ids=ids, decoder_input_ids=decoder, use_cache=False).logits
            else:
                logits = policy.model(input_ids=torch.cat([ids, past], 1), use_cache=False).logits
            written.append(int(logits[0, -1].argmax()))
            if written[-1] in policy.eos_ids:
                break
    return written


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_trap_10_greedy_decoding_is_the_argmax_of_the_uncached_unpadded_model(name):
    policy = tiny.policy(name, extra_eos=20)
    prompts = tiny.prompts(policy, lengths=(3, 11, 2, 5, 7))
    rollout = policy.sample(prompts, tiny.sampling(max_new_tokens=5).greedy())
    assert rollout.group_size == 1
    for row, prompt in enumerate(prompts):
        assert rollout.response_ids[row][rollout.response_mask[row]].tolist() == greedy_by_hand(
            policy, prompt, 5
        )


def test_a_first_token_that_the_model_forces_is_given_and_not_written():
    free, forced = (tiny.policy(name, extra_eos=20) for name in ("bart", "bart-forced"))
    prompts = tiny.prompts(free)
    own = forced.sample(prompts, tiny.SHORT, seed=3)
    assert own.responses != free.sample(prompts, tiny.SHORT, seed=3).responses
    assert own.lengths.max() == 7, "it takes nothing from the length of a response"
    words = forced.tokenizer.convert_ids_to_tokens([5, 7, 11])
    given = [policy.given(prompts, [" ".join(words)] * 4, limit=7) for policy in (free, forced)]
    assert torch.equal(given[0].response_ids, given[1].response_ids)
    assert given[1].response_ids[0].tolist() == [5, 7, 11, forced.eos_ids[0]]
    with torch.no_grad():
        assert not torch.allclose(free(given[0]).logprobs, forced(given[1]).logprobs, atol=1e-2)


def test_prompts_of_a_single_token_can_be_continued():
    policy = tiny.policy("llama")
    for lengths in ((1, 1), (1, 5)):
        prompts = tiny.prompts(policy, lengths=lengths)
        rollout = policy.sample(prompts, tiny.sampling(max_new_tokens=5).greedy())
        for row, prompt in enumerate(prompts):
            expected = greedy_by_hand(policy, prompt, 5)
            assert rollout.response_ids[row][rollout.response_mask[row]].tolist() == expected


@pytest.mark.parametrize("sharing", [Sharing(), Sharing("a test compares")])
@pytest.mark.parametrize("name", ["bart", "llama"])
def test_the_models_own_generation_settings_do_not_change_what_is_sampled(name, sharing):
    policy = tiny.policy(name)
    policy.sharing = sharing
    prompts = tiny.prompts(policy)
    expected = policy.sample(prompts, tiny.SHORT, seed=3)
    own = policy.model.generation_config
    own.update(
        num_beams=3,
        no_repeat_ngram_size=1,
        repetition_penalty=3.0,
        forced_eos_token_id=own.eos_token_id,
        forced_bos_token_id=77,
        suppress_tokens=list(range(10, 60)),
        min_length=5,
        do_sample=True,
        temperature=0.3,
        top_k=2,
    )
    before = own.to_dict()
    rollout = policy.sample(prompts, tiny.SHORT, seed=3)
    assert torch.equal(rollout.response_ids, expected.response_ids)
    assert policy.model.generation_config is own
    assert own.to_dict() == before


@pytest.mark.parametrize("sharing", [Sharing(), Sharing("a test compares")])
@pytest.mark.parametrize("name", ["t5", "bart", "llama"])
def test_sampling_in_training_mode_with_gradient_checkpointing_keeps_its_cache(name, sharing):
    policy = tiny.policy(name)
    policy.sharing = sharing
    prompts = tiny.prompts(policy)
    expected = policy.sample(prompts, tiny.SHORT, seed=3)
    policy.model.activation_checkpointing_enable()
    policy.train()
    rollout = policy.sample(prompts, tiny.SHORT, seed=3)
    assert rollout.responses == expected.responses
    recomputed = [module for module in policy.modules() if hasattr(module, "gradient_checkpointing")]
    assert recomputed
    assert all(module.training for module in recomputed)


def rows_seen(module):
    seen = []
    handle = module.register_forward_hook(
        lambda module, arguments, named, output: seen.append(_tokens(arguments, named)), with_kwargs=True
    )
    return seen, handle


def _tokens(arguments, named):
    ids = named.get("input_ids", arguments[0] if arguments else None)
    return tuple(ids.shape)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_the_encoder_runs_once_a_prompt_and_not_once_a_candidate(name):
    policy = tiny.policy(name)
    seen, handle = rows_seen(policy.model.get_encoder())
    rollout = policy.sample(tiny.prompts(policy), tiny.SHORT)
    policy(rollout)
    policy.observe(rollout)
    handle.remove()
    assert seen == [(4, 7)] * 3


def test_a_causal_prompt_is_prefilled_once_and_not_once_a_candidate():
    policy = tiny.policy("llama")
    seen, handle = rows_seen(policy.model.model)
    policy.sample(tiny.prompts(policy), tiny.SHORT)
    handle.remove()
    # One row of all prompts' tokens; then one of the last token of each of twelve responses.
    assert seen[0] == (1, sum(tiny.LENGTHS))
    assert set(seen[1:]) == {(1, 12)}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rows_that_have_ended_leave_the_batch_and_nothing_else_changes(name, monkeypatch):
    policy = tiny.policy(name, extra_eos=30)
    prompts = tiny.prompts(policy)
    rows = []
    policy.model.get_output_embeddings().register_forward_hook(
        lambda _, given, __: rows.append(given[0].shape[:-1].numel())
    )
    monkeypatch.setattr("cagsr.models.decoding.LEAVING", 2.0)
    stayed = policy.sample(prompts, tiny.SHORT, seed=3)
    assert len(set(rows[1:])) == 1, "nobody left"
    rows.clear()
    monkeypatch.setattr("cagsr.models.decoding.LEAVING", 0.01)
    left = policy.sample(prompts, tiny.SHORT, seed=3)
    # A row is in the batch as long as it writes; the first pass may be over prompts.
    lengths = left.lengths
    assert rows[1:] == [int((lengths > t).sum()) for t in range(1, int(lengths.max()))]
    assert rows[-1] < rows[1]
    for field in ("response_ids", "response_mask", "finished"):
        assert torch.equal(getattr(left, field), getattr(stayed, field))


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("sampling", [tiny.SHORT, tiny.sampling(min_new_tokens=4), tiny.SHORT.greedy()])
def test_transformers_own_loop_writes_the_same(name, sampling):
    policy = tiny.policy(name, extra_eos=20)
    prompts = tiny.prompts(policy)
    shared = policy.sample(prompts, sampling, seed=3)
    policy.sharing = Sharing("a test compares")
    by_generate = policy.sample(prompts, sampling, seed=3)
    for field in ("response_ids", "response_mask", "finished"):
        assert torch.equal(getattr(by_generate, field), getattr(shared, field))


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("layers", ["all", "last"])
def test_what_is_seen_while_writing_is_what_a_pass_over_the_written_sees(name, layers, monkeypatch):
    monkeypatch.setattr("cagsr.models.decoding.LEAVING", 0.01)
    policy = tiny.policy(name, extra_eos=20, layers=layers, temperature=0.7)
    prompts, sampling = tiny.prompts(policy), tiny.sampling(temperature=0.7, min_new_tokens=2)
    rollout, seen = policy.sample_observed(prompts, sampling, seed=3)
    expected = policy.observe(policy.sample(prompts, sampling, seed=3))
    assert seen is not None
    assert rollout.lengths.unique().numel() > 2
    for field, value in vars(expected).items():
        torch.testing.assert_close(getattr(seen, field), value, rtol=1e-4, atol=1e-5, msg=field)
    part = rollout.groups(1, 3)
    for field, value in vars(policy.observe(part)).items():
        torch.testing.assert_close(
            getattr(seen.of_groups(rollout, 1, 3), field), value, rtol=1e-4, atol=1e-5, msg=field
        )


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_autocast_samples_as_it_scores(name):
    policy = tiny.policy(name, extra_eos=20)
    with torch.autocast("cpu", torch.bfloat16):
        rollout, seen = policy.sample_observed(tiny.prompts(policy), tiny.SHORT, seed=3)
        expected = policy.observe(rollout)
    torch.testing.assert_close(seen.logprobs, expected.logprobs, rtol=0.1, atol=0.2)
    torch.testing.assert_close(seen.attention, expected.attention, rtol=0, atol=0.05)


def test_logits_that_are_not_finite_are_said_and_not_drawn_from():
    policy = tiny.policy("llama")
    policy.model.lm_head.register_forward_hook(lambda _, __, logits: logits * torch.nan)
    with pytest.raises(NumericsError, match="logits are not finite, so that no token can be drawn"):
        policy.sample(tiny.prompts(policy), tiny.SHORT)


def test_a_decoder_with_a_window_forgets_nothing_of_its_prompt():
    side = {
        "vocab_size": 127,
        "hidden_size": 24,
        "intermediate_size": 28,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 5,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "query_pre_attn_scalar": 8,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 1,
    }
    torch.manual_seed(0)
    config = T5GemmaConfig(
        encoder=side, decoder=side, vocab_size=127, pad_token_id=0, bos_token_id=2, eos_token_id=1
    )
    model = AutoModelForSeq2SeqLM.from_config(config, attn_implementation=ATTENTION).eval()
    model.generation_config.decoder_start_token_id = 2
    policy = make_policy(model, tiny._tokenizer("encoder-decoder"))
    prompts = tiny.prompts(policy, (3, 11, 7))
    shared = policy.sample(prompts, tiny.SHORT, seed=3)
    policy.sharing = Sharing("a test compares")
    assert torch.equal(policy.sample(prompts, tiny.SHORT, seed=3).response_ids, shared.response_ids)


def test_a_t5_whose_decoder_has_more_layers_than_its_encoder_samples():
    config = T5Config(
        vocab_size=127, d_model=20, d_kv=5, d_ff=28, num_layers=2, num_decoder_layers=3, num_heads=4
    )
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(config, attn_implementation=ATTENTION).eval()
    model.generation_config.decoder_start_token_id = 0
    policy = make_policy(model, tiny._tokenizer("encoder-decoder"))
    rollout = policy.sample(
        tiny.prompts(policy, (3, 11, 7)), tiny.sampling(temperature=0.0, max_new_tokens=7)
    )
    predictions = policy.predict(rollout)
    likeliest = predictions.logits.argmax(-1)[predictions.place]
    assert torch.equal(likeliest[rollout.response_mask], rollout.response_ids[rollout.response_mask])
