"""A model's generation config: what it forbids is in no response and in no distribution, and the rest is named."""

from functools import cache
from io import StringIO

import pytest
import torch
from rich.console import Console

import tiny
from cagsr.attention.sharing import Sharing
from cagsr.errors import InputError, UnsupportedModelError
from cagsr.models.build import check_sampling
from cagsr.models.generation_rules import GenerationRules
from cagsr.models.policy import Policy
from cagsr.models.token_logprobs import IMPOSSIBLE
from cagsr.models.vllm import VLLMSampler

WRITTEN = 7
GREEDY = tiny.sampling(max_new_tokens=WRITTEN, candidates=1, temperature=0.0)
each_model = pytest.mark.parametrize("name", ["t5", "bart", "bart-forced", "llama", "mistral"])
each_path = pytest.mark.parametrize(
    "sharing", [Sharing(), Sharing("a test compares")], ids=["shared", "generate"]
)


def made(name: str, ignored=(), **generation) -> Policy:
    return tiny.policy(name, ignored=ignored, generation=generation)


def greedy_by_transformers(policy: Policy, prompt) -> list[int]:
    """What plain ``generate`` writes under the model's own generation config."""
    given = {"input_ids": torch.tensor([prompt.ids])}
    start = len(prompt.ids)
    if policy.model.config.is_encoder_decoder:
        given["decoder_input_ids"] = torch.tensor([tiny.prefix_of(policy)])
        start = len(tiny.prefix_of(policy))
    return policy.model.generate(**given, do_sample=False, max_new_tokens=WRITTEN)[0, start:].tolist()


def likeliest(name: str, prompt_of=0) -> list[int]:
    """What a model writes when nothing is forbidden."""
    policy = made(name)
    return greedy_by_transformers(policy, tiny.prompts(policy)[prompt_of])


@cache
def rules_of(name: str) -> dict[str, list]:
    first, *rest = likeliest(name)
    return {
        "bad_words_ids": [[first], [rest[1]]],
        "suppress_tokens": [rest[0]],
        "begin_suppress_tokens": [likeliest(name, 1)[0], 5],
    }


@each_path
@each_model
def test_greedy_tokens_are_those_of_transformers_under_the_same_generation_config(name, sharing):
    plain = made(name)
    before = [greedy_by_transformers(plain, prompt) for prompt in tiny.prompts(plain)]
    for setting, value in rules_of(name).items():
        policy = made(name, **{setting: value})
        policy.sharing = sharing
        prompts = tiny.prompts(policy)
        expected = [greedy_by_transformers(policy, prompt) for prompt in prompts]
        assert expected != before, f"{setting} changes nothing here"
        rollout = policy.sample(prompts, GREEDY)
        found = [
            ids[mask].tolist() for ids, mask in zip(rollout.response_ids, rollout.response_mask, strict=True)
        ]
        assert found == expected, setting


@each_path
@each_model
def test_what_is_forbidden_is_no_part_of_the_distribution_that_is_scored(name, sharing):
    rules = rules_of(name)
    policy = made(name, **rules)
    policy.temperature, policy.sharing = 0.7, sharing
    rollout = policy.sample(tiny.prompts(policy), tiny.sampling(temperature=0.7), seed=3)
    never = [word for (word,) in rules["bad_words_ids"]] + rules["suppress_tokens"]
    assert not torch.isin(rollout.response_ids, torch.tensor(never)).any()
    assert not torch.isin(rollout.response_ids[:, 0], torch.tensor(rules["begin_suppress_tokens"])).any()
    seen = policy.observe(rollout)
    with torch.no_grad():
        scored = policy(rollout)
    assert torch.equal(policy.logprobs(rollout), scored.logprobs)
    for row, (ids, mask) in enumerate(zip(rollout.response_ids, rollout.response_mask, strict=True)):
        written = ids[mask].tolist()
        with torch.no_grad():
            inputs = tiny.inputs_of(policy, rollout.prompts[row // 3], written)
            logits = policy.model(**inputs).logits[0].double()
        logits = (
            logits[-len(written) - 1 : -1] if "decoder_input_ids" not in inputs else logits[-len(written) :]
        )
        logits[:, never] = -torch.inf
        logits[0, rules["begin_suppress_tokens"]] = -torch.inf
        p = (logits / 0.7).softmax(-1)
        expected = {
            "logprobs": p[range(len(written)), written].log(),
            "confidence": p[range(len(written)), written] / p.amax(-1),
            "entropy": torch.special.entr(p).sum(-1),
            "certainty": torch.stack(
                [-q[q > 0].log().mean() - torch.tensor(float((q > 0).sum())).log() for q in p]
            ),
        }
        for field, values in expected.items():
            found = getattr(seen, field)[row, : len(written)].double()
            torch.testing.assert_close(found, values, rtol=1e-4, atol=1e-4, msg=field)
        torch.testing.assert_close(
            scored.entropy[row, : len(written)].double(), expected["entropy"], rtol=1e-4, atol=1e-4
        )


def test_what_is_seen_while_writing_knows_what_is_forbidden():
    policy = made("llama", **rules_of("llama"))
    prompts = tiny.prompts(policy)
    rollout, seen = policy.sample_observed(prompts, tiny.SHORT, seed=3)
    for field, value in vars(policy.observe(rollout)).items():
        torch.testing.assert_close(getattr(seen, field), value, rtol=1e-4, atol=1e-4, msg=field)
        for one in value.values() if isinstance(value, dict) else [value]:
            assert one.isfinite().all()


def test_a_given_token_that_is_forbidden_has_a_finite_log_probability_and_moves_no_weight():
    policy = made("llama", suppress_tokens=[33])
    rollout = policy.given_ids(tiny.prompts(policy)[:1], [[33]])
    scored = policy(rollout).logprobs
    assert scored.tolist() == [[IMPOSSIBLE]]
    free = made("llama").given_ids(tiny.prompts(policy)[:1], [[33]])
    assert made("llama").logprobs(free).item() > IMPOSSIBLE


def test_a_forbidden_end_among_bad_words_stays_allowed_as_in_transformers():
    rules = GenerationRules.of(
        made("llama", bad_words_ids=[[2], [9]]).model.generation_config, [2], causal=True
    )
    assert rules.never == (9,)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("repetition_penalty", 1.05),
        ("no_repeat_ngram_size", 3),
        ("encoder_no_repeat_ngram_size", 3),
        ("sequence_bias", [[[7], 4.0]]),
        ("exponential_decay_length_penalty", (3, 1.2)),
        ("typical_p", 0.9),
        ("min_p", 0.1),
        ("epsilon_cutoff", 1e-3),
        ("eta_cutoff", 1e-3),
        ("guidance_scale", 1.5),
        ("penalty_alpha", 0.6),
        ("bad_words_ids", [[5, 7]]),
        ("forced_decoder_ids", [[1, 7]]),
        ("stop_strings", ["end"]),
        ("forced_bos_token_id", 9),
    ],
)
def test_what_is_not_kept_is_refused_by_name_with_the_line_that_leaves_it_out(setting, value):
    policy = made("llama", **{setting: value})
    for sample in (policy.sample, policy.sample_observed):
        with pytest.raises(InputError, match=rf"{setting} .*ignore_generation_config: \[{setting}\]"):
            sample(tiny.prompts(policy), tiny.SHORT)
    ignoring = made("llama", ignored=[setting], **{setting: value})
    free = made("llama")
    assert torch.equal(
        ignoring.sample(tiny.prompts(free), tiny.SHORT).response_ids,
        free.sample(tiny.prompts(free), tiny.SHORT).response_ids,
    )


def test_all_that_is_refused_is_named_at_once():
    policy = made("bart", no_repeat_ngram_size=3, encoder_repetition_penalty=1.2)
    with pytest.raises(InputError, match=r"\[encoder_repetition_penalty, no_repeat_ngram_size\]"):
        policy.rules.check()


def test_neutral_values_are_not_refused():
    neutral = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "typical_p": 1.0, "guidance_scale": 1.0}
    policy = made("llama", **neutral, temperature=1.0, top_p=1.0, num_beams=1, min_length=0)
    assert policy.rules == GenerationRules()


def test_a_misspelt_setting_to_ignore_is_refused():
    with pytest.raises(
        InputError, match="unknown setting 'repetiton_penalty'; did you mean 'repetition_penalty'"
    ):
        made("llama", ignored=["repetiton_penalty"])


def test_what_the_section_sampling_overrules_is_said():
    policy = made(
        "bart", num_beams=4, length_penalty=2.0, min_length=56, forced_eos_token_id=1, temperature=0.6
    )
    console = Console(file=StringIO(), width=300)
    check_sampling(policy, console)
    said = console.file.getvalue()
    for told in ("temperature 0.6", "min_length 56", "num_beams 4", "sampling.min_new_tokens"):
        assert told in said


def test_vllm_is_not_asked_for_a_model_that_forbids_tokens():
    with pytest.raises(InputError, match=r"sampling\.engine: .* forbids tokens"):
        VLLMSampler(made("llama", suppress_tokens=[9]), None, None)


def test_marians_forbidden_padding_is_never_written():
    policy = made("bart", bad_words_ids=[[0]])
    assert policy.pad_id == 0
    rollout = policy.sample(tiny.prompts(policy), tiny.sampling(max_new_tokens=11), seed=5)
    assert (rollout.response_ids[rollout.response_mask] != 0).all()


@pytest.mark.parametrize("setting", ["decoder_start_token_id", "forced_bos_token_id"])
@pytest.mark.parametrize("value", [[0], [0, 5], -1, 10**5, "<s>"])
def test_a_beginning_that_is_no_token_is_named(setting, value):
    with pytest.raises(
        UnsupportedModelError, match=rf"the model's {setting} is .* to one token id, from 0 to "
    ):
        made("t5", **{setting: value})
