"""Reconstruction, by hand and by a chat model: the prompt after the response, with the roles turned round."""

from dataclasses import replace

import pytest
import torch

from cagsr.data.in_memory import encode_in_memory
from cagsr.errors import InputError
from cagsr.models.load_policy import load_policy
from cagsr.rewards.signals import SIGNALS
from chat_models import chat_model, chat_tokenizer
from evidence import make_evidence, make_prompt

reconstruction = SIGNALS["reconstruction"]


def test_the_users_words_are_scored_after_the_response_in_their_place():
    # Template 3, words 4 and 5 of the user, template 6: the user's turn is "b c".
    prompt = make_prompt("a b c d", content=[(2, 5)])
    evidence = make_evidence(
        torch.full((2, 3, 5), 0.1),
        prompts=[prompt],
        prompt_ids=[[3, 4, 5, 6, 1]],
        response_ids=[[7, 8, 1], [9, 9, 9]],
        lengths=[3, 2],
        finished=[True, False],
    )
    # The observer finds token y after a prompt of sum s worth -((3 y + s) % 13) / 3 nats.
    # First: 3 + 7 + 8 + 6 + 1 = 25, its end left out: (12 + 25) % 13 = 11 and (15 + 25) % 13 = 1.
    # Second: 3 + 9 + 9 + 6 + 1 = 28: 40 % 13 = 1 and 43 % 13 = 4.
    assert reconstruction(evidence).tolist() == pytest.approx([-(11 + 1) / 3 / 2, -(1 + 4) / 3 / 2])


def test_of_a_conversation_the_last_user_turn_is_told():
    prompt = make_prompt("a b c d", content=[(0, 1), (4, 5)])
    evidence = make_evidence(
        torch.full((1, 1, 5), 0.1), prompts=[prompt], prompt_ids=[[3, 4, 5, 6, 1]], response_ids=[[7]]
    )
    # 3 + 4 + 7 + 6 + 1 = 21 before 5: (15 + 21) % 13 = 10.
    assert reconstruction(evidence).tolist() == pytest.approx([-10 / 3])


def test_a_prompt_without_a_users_word_has_nothing_to_tell():
    evidence = make_evidence(torch.full((1, 1, 3), 0.1), prompts=[make_prompt("a b", content=[])])
    assert reconstruction(evidence).tolist() == [0.0]


def test_an_empty_response_to_a_plain_text_tells_no_more_than_its_end():
    ended = make_prompt("a b")
    prompt = replace(ended, ids=(3, 4), offsets=ended.offsets[:2])  # as a causal tokenizer reads a text
    evidence = make_evidence(
        torch.full((1, 1, 2), 0.1),
        prompts=[prompt],
        prompt_ids=[[3, 4]],
        response_ids=[[1]],
        finished=[True],
    )
    # The end is 1: (9 + 1) % 13 = 10 and (12 + 1) % 13 = 0. After the prompt's own 4 it would be 0 and 3.
    assert reconstruction(evidence).tolist() == pytest.approx([-10 / 3 / 2])


def test_without_an_observer_it_is_refused():
    evidence = replace(make_evidence(torch.full((1, 1, 3), 0.1)), observer=None)
    with pytest.raises(InputError, match="reconstruction asks the observer again"):
        reconstruction(evidence)


def test_a_chat_model_reads_the_response_as_the_users_turn():
    policy = load_policy(chat_model(), chat_tokenizer())
    texts = ("city lyon", "tea", "hello world")
    asked = [[{"role": "user", "content": text}] for text in texts]
    prompt, *turned = encode_in_memory(asked, policy.tokenizer)
    # A turn's own tokens: in front of a response this tokenizer writes a space.
    words = [
        [
            token
            for token, (start, end) in zip(each.ids, each.offsets, strict=True)
            if start >= 17 and end <= 17 + len(text)
        ]
        for each, text in zip((prompt, *turned), texts, strict=True)
    ]
    assert [str(policy.tokenizer.decode(ids)).strip() for ids in words] == list(texts)
    rollout = policy.given_ids([prompt], [[*ids, policy.eos_ids[0]] for ids in words[1:]])
    evidence = make_evidence(torch.zeros(2, rollout.response_ids.shape[1], rollout.prompt_ids.shape[1]))
    found = reconstruction(replace(evidence, rollout=rollout, observer=policy))
    expected = [policy.logprobs(policy.given_ids([each], [words[0]])).mean().item() for each in turned]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    assert expected[0] != pytest.approx(expected[1], abs=1e-3)
