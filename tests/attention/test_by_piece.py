"""Attention by piece agrees with the mean of the attention by token, in every path that reads it."""

from dataclasses import replace

import pytest
import torch
from test_heads import MODELS, heads_of, table
from test_shared_prompt import alone, policy_of, rolled
from torch import Tensor

import tiny
from cagsr.attention import by_piece
from cagsr.attention.by_piece import ByPiece
from cagsr.attention.call import AttentionCall
from cagsr.attention.naive import naive_looks, piece_weights
from cagsr.models import predictions
from cagsr.types import Prompt, Wanted

PIECES = {11: [[0, 2], [7, 8, 9, 10], [1]], 3: [[2, 0]], 5: []}
"""The tokens of each piece, by the length of the prompt: not in order, not all tokens, not all prompts."""


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Bands of three columns, for prompts of any size."""
    monkeypatch.setattr(by_piece, "BAND", 3)
    monkeypatch.setattr(predictions, "LARGE", 0)


def pieces(prompts: list[Prompt], prompt_mask: Tensor) -> Tensor:
    found = torch.zeros(len(prompts), 3, prompt_mask.shape[1], dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        columns = prompt_mask[row].nonzero().flatten()
        for piece, tokens in enumerate(PIECES[len(prompt.ids)]):
            found[row, piece, columns[tokens]] = True
    return found


BY_PIECE = Wanted(by_token=False, prompt_logprobs=False, pieces=pieces)


def expected_of(attention: Tensor, rollout) -> Tensor:
    """[N T J] by a loop over pieces."""
    looks = torch.zeros(*attention.shape[:2], 3)
    for n in range(len(attention)):
        prompt = n // rollout.group_size
        columns = rollout.prompt_mask[prompt].nonzero().flatten()
        for piece, tokens in enumerate(PIECES[len(rollout.prompts[prompt].ids)]):
            looks[n, :, piece] = attention[n][:, columns[tokens]].mean(-1)
    return looks


def test_looks_are_the_mean_over_the_tokens_of_a_piece():
    attention = torch.tensor([[[0.1, 0.2, 0.4], [0.0, 0.5, 0.3]]])
    of = torch.tensor([[[True, False, True], [False, True, False], [False, False, False]]])
    looks = naive_looks(attention, piece_weights(of))
    torch.testing.assert_close(looks, torch.tensor([[[0.25, 0.2, 0.0], [0.15, 0.5, 0.0]]]))


@pytest.mark.parametrize("weighted", [False, True], ids=["all heads", "weighted heads"])
@pytest.mark.parametrize("name", MODELS)
def test_a_pass_reads_by_piece_what_it_reads_by_token(name: str, weighted: bool):
    policy = policy_of(name)
    rollout = rolled(policy)
    if weighted:
        weights = table(policy.readable.layers, heads_of(policy.model))
        policy.readable = policy.readable.weighted(weights)
    whole = policy.observe(rollout)
    seen = policy.observe(rollout, BY_PIECE)
    assert seen.on_prompt.keys() == {"looks"}
    torch.testing.assert_close(seen.looks, expected_of(whole.attention, rollout), rtol=1e-5, atol=1e-7)
    for fact in ("logprobs", "confidence", "entropy", "certainty"):
        assert torch.equal(getattr(seen, fact), getattr(whole, fact)), fact
    with alone(policy):
        torch.testing.assert_close(policy.observe(rollout, BY_PIECE).looks, seen.looks, rtol=1e-5, atol=2e-6)
    both = policy.observe(rollout, replace(BY_PIECE, by_token=True))
    assert torch.equal(both.looks, seen.looks)  # what is shown of a run moves none of its numbers
    torch.testing.assert_close(both.attention, whole.attention, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_model_that_takes_one_prompt_at_a_time_reads_by_piece(name: str):
    policy = policy_of(name)
    rollout = rolled(policy)
    expected = policy.observe(rollout, BY_PIECE)
    policy.sharing = replace(policy.sharing, reason="a test compares", padded=False)
    seen = policy.observe(rollout, replace(BY_PIECE, by_token=True))
    torch.testing.assert_close(seen.looks, expected.looks, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(expected_of(seen.attention, rollout), seen.looks, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["llama", "mistral", "t5", "bart"])
def test_decoding_reads_by_piece_what_a_pass_reads(name: str):
    policy = policy_of(name, torch.float32)
    policy.eos_ids = [*policy.eos_ids, *range(20, 60)]  # so that rows leave the batch
    sampling = tiny.sampling(max_new_tokens=7)
    rollout, seen = policy.sample_observed(rolled(policy).prompts, sampling, wanted=BY_PIECE)
    assert seen is not None
    assert rollout.lengths.unique().numel() > 1
    assert seen.on_prompt.keys() == {"looks"}
    torch.testing.assert_close(seen.looks, policy.observe(rollout, BY_PIECE).looks, rtol=1e-4, atol=2e-6)
    part = seen.of_groups(rollout, 1, 3)
    expected = policy.observe(rollout.groups(1, 3), BY_PIECE)
    torch.testing.assert_close(part.looks, expected.looks, rtol=1e-4, atol=2e-6)


def test_what_was_not_read_says_so():
    policy = policy_of("llama")
    seen = policy.observe(rolled(policy), BY_PIECE)
    with pytest.raises(RuntimeError, match=r"observation\.attention was not read"):
        _ = seen.attention
    with pytest.raises(RuntimeError, match=r"observation\.prompt_logprobs was not read"):
        _ = seen.prompt_logprobs


def test_only_columns_of_pieces_are_read_and_one_band_of_them_at_a_time(monkeypatch):
    given = torch.zeros(2, 3, 13, dtype=torch.bool)
    given[0, 0, 4], given[1, 1, 12] = True, True
    read = []
    monkeypatch.setattr(by_piece, "add_attention", lambda part, query, key, *_: read.append(key[0, 0, :, 0]))
    query, key = torch.zeros(2, 5, 7, 11), torch.arange(13.0)[:, None].expand(2, 1, 13, 11)
    lse = torch.zeros(2, 5, 7)
    ByPiece(given, False).add(AttentionCall(torch.nn.Identity(), query, key, key, 1.0), lse, [0.2] * 5)
    assert [columns.tolist() for columns in read] == [[3.0, 4.0, 5.0], [12.0]]
