"""Follow-up perplexity: against a naive computation in float64, one row at a time, no padding."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import tiny
from cagsr.errors import InputError
from cagsr.evaluation.perplexity import FollowUp

RESPONSES = ["city lyon", "", "tea day monday city", "monday"]
TARGETS = ["day", "city lyon tea", "monday day", "lyon"]


def naive(policy, context, target):
    """Mean -log p a token, from the whole sequence in float64."""
    model = policy.model.double()
    with torch.no_grad():
        if policy.readable.kind == "causal":
            logits = model(input_ids=torch.tensor([context + target])).logits[0, len(context) - 1 : -1]
        else:
            start = [model.generation_config.decoder_start_token_id]
            logits = model(
                input_ids=torch.tensor([context]), decoder_input_ids=torch.tensor([start + target])
            ).logits[0, :-1]
    total = 0.0
    for row, token in zip(logits, target, strict=True):
        total -= float(row[token] - row.logsumexp(0))
    model.float()
    return total / len(target)


@pytest.mark.parametrize("name", ["t5", "bart", "llama", "qwen2"])
def test_the_mean_over_the_targets_tokens_of_minus_log_p(name):
    policy = tiny.policy(name, temperature=0.5)  # the temperature of sampling is none of this
    prompts = tiny.prompts(policy)
    found = FollowUp(policy, rows_per_pass=3).nll(prompts, RESPONSES, TARGETS)
    words = policy.tokenizer
    for n, (prompt, response, target) in enumerate(zip(prompts, RESPONSES, TARGETS, strict=True)):
        plain = {"add_special_tokens": False}
        if policy.readable.kind == "causal":
            context = list(prompt.ids) + words(response, **plain)["input_ids"]
        else:
            context = words(f"{prompt.text}\n{response}")["input_ids"]
        assert found[n] == pytest.approx(
            naive(policy, context, words(target, **plain)["input_ids"]), abs=2e-5
        )
    assert len(set(found)) == 4


def test_rows_in_one_pass_or_alone_are_the_same():
    policy = tiny.policy("llama")
    prompts = tiny.prompts(policy)
    together, alone = (FollowUp(policy, rows).nll(prompts, RESPONSES, TARGETS) for rows in (32, 1))
    assert together == pytest.approx(alone, abs=1e-5)


def test_the_response_is_part_of_the_context():
    policy = tiny.policy("t5")
    prompts = tiny.prompts(policy, (5, 5))[:1] * 2
    first, second = FollowUp(policy).nll(prompts, ["tea", "day"], ["city"] * 2)
    assert abs(first - second) > 1e-3


def test_a_conversation_ends_with_the_users_next_turn():
    policy = tiny.policy("llama")
    policy.tokenizer = fresh = type(policy.tokenizer)(
        tokenizer_object=policy.tokenizer.backend_tokenizer,
        eos_token=policy.tokenizer.eos_token,
        unk_token=policy.tokenizer.unk_token,
    )
    fresh.chat_template = (
        "{% for m in messages %}{{ 'city ' if m.role == 'user' else 'day ' }}{{ m.content }} monday {% endfor %}"
        "{% if add_generation_prompt %}day {% endif %}"
    )
    (prompt,) = tiny.prompts(policy, (3,))
    prompt = replace(prompt, row={"prompt": [{"role": "user", "content": "tea"}]})
    context, target = FollowUp(policy).pieces(prompt, "lyon", "day tea")
    assert fresh.decode(context) == "city tea monday day lyon monday city"
    assert fresh.decode(target) == "day tea"


def test_what_does_not_fit_is_cut_target_first_then_the_contexts_start():
    policy = tiny.policy("llama")  # 64 positions
    (prompt,) = tiny.prompts(policy, (40,))
    context, target = FollowUp(policy).pieces(prompt, "tea " * 10, "day " * 50)
    assert len(target) == 32
    assert len(context) == 32
    assert context[-11:] == [prompt.ids[-1], *policy.tokenizer("tea " * 10)["input_ids"]]
    assert np.isfinite(FollowUp(policy).nll([prompt], ["tea " * 10], ["day " * 50])).all()
    whole, _ = FollowUp(policy).pieces(prompt, "tea", "day")
    assert whole[:40] == list(prompt.ids)


def test_a_target_without_a_token_is_refused():
    policy = tiny.policy("llama")
    with pytest.raises(InputError, match="no token to predict"):
        FollowUp(policy).nll(tiny.prompts(policy, (3,)), ["tea"], [" "])
