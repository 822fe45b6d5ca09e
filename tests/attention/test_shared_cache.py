"""Decoding from a shared prompt: each step's output is that of attention over the whole sequence of each response."""

import pytest
import torch
from torch import Tensor, nn

from cagsr.attention import shared_cache
from cagsr.attention.call import AttentionCall
from cagsr.attention.shared_cache import SharedCache

PROMPTS, K, HEADS, KEY_HEADS, WIDTH, STEPS = (7, 3, 5), 2, 6, 3, 5, 4


def drawn(tokens: int, heads: int, generator: torch.Generator) -> Tensor:
    """[1 H m D] as a model's projections give it."""
    return torch.randn(1, tokens, heads, WIDTH, generator=generator, dtype=torch.float64).transpose(1, 2)


def by_definition(query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
    """[H D] of the last position of one sequence: query [H D], key and value [L G D]."""
    key, value = (each.repeat_interleave(HEADS // KEY_HEADS, 1) for each in (key, value))
    scores = torch.einsum("hd,lhd->hl", query, key) * 0.3
    if window is not None:
        scores[:, : max(0, len(key) - window)] = -torch.inf
    return torch.einsum("hl,lhd->hd", scores.softmax(-1), value)


@pytest.mark.parametrize("window", [None, 6, 100])
@pytest.mark.parametrize("lengths", [PROMPTS, (5, 5, 5)], ids=["ragged", "even"])
@pytest.mark.parametrize("leaving", [{}, {1: [0, 3, 4], 2: [1, 2]}], ids=["all stay", "some leave"])
def test_each_step_attends_to_the_prompt_and_to_what_was_written(
    window: int | None, lengths: tuple[int, ...], leaving: dict, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shared_cache, "BLOCK", 1)  # room is made twice
    mask = torch.arange(max(lengths)) >= max(lengths) - torch.tensor(lengths)[:, None]
    cache, module, generator = SharedCache(mask, K), nn.Module(), torch.Generator().manual_seed(0)
    total = sum(lengths)
    assert (
        cache.ids(torch.arange(mask.numel()).view(mask.shape))[0].tolist()
        == mask.flatten().nonzero()[:, 0].tolist()
    )
    assert cache.positions[0].tolist() == [t for length in lengths for t in range(length)]

    def step(count: int) -> tuple[Tensor, ...]:
        query, key, value = (drawn(count, heads, generator) for heads in (HEADS, KEY_HEADS, KEY_HEADS))
        output = cache.attend(AttentionCall(module, query, key, value, scaling=0.3, window=window), None)
        assert output.shape == (1, count, HEADS, WIDTH)
        return query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1), output[0]

    query, key, value, output = step(total)
    starts = [sum(lengths[:p]) for p in range(len(lengths))]
    for start, length in zip(starts, lengths, strict=True):
        for t in range(length):
            seen = slice(start, start + t + 1)
            expected = by_definition(query[start + t], key[seen], value[seen], window)
            torch.testing.assert_close(output[start + t], expected, rtol=1e-10, atol=1e-10)

    rows = list(range(len(lengths) * K))
    past = {
        row: [each[starts[row // K] : starts[row // K] + lengths[row // K]] for each in (key, value)]
        for row in rows
    }
    for t in range(STEPS):
        assert cache.positions[0].tolist() == [lengths[row // K] + t for row in rows]
        query, key, value, output = step(len(rows))
        cache.written += 1
        for n, row in enumerate(rows):
            past[row] = [
                torch.cat([old, new[n : n + 1]]) for old, new in zip(past[row], (key, value), strict=True)
            ]
            expected = by_definition(query[n], *past[row], window)
            torch.testing.assert_close(output[n], expected, rtol=1e-6, atol=1e-6)  # weights are float32
        if t in leaving:
            cache.keep(torch.tensor(leaving[t]))
            rows = [rows[n] for n in leaving[t]]


def test_a_prompt_is_kept_once_and_a_response_takes_the_room_it_needs():
    cache, module = SharedCache(torch.ones(2, 11, dtype=torch.bool), 3), nn.Module()
    generator = torch.Generator().manual_seed(0)
    for count in (22, *[6] * 17):
        query, key = drawn(count, HEADS, generator), drawn(count, KEY_HEADS, generator)
        cache.attend(AttentionCall(module, query, key, key, scaling=0.3), None)
        cache.written += count == 6
    kept = cache.kept[module]
    assert kept.prompt_key.shape == (2, KEY_HEADS, 11, WIDTH)
    assert kept.own_key.shape == (6, KEY_HEADS, 32, WIDTH)
    cache.keep(torch.tensor([1, 4]))
    assert cache.kept[module].own_value.shape == (2, KEY_HEADS, 32, WIDTH)
    assert cache.kept[module].prompt_value.shape == (2, KEY_HEADS, 11, WIDTH)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sharp_scores_of_a_short_type_are_not_rounded_before_the_softmax(dtype: torch.dtype):
    """The scaled scores spread by 16; float16 would overflow at 65,504 before they are scaled."""
    cache, module = SharedCache(torch.ones(1, 40, dtype=torch.bool), 1), nn.Module()
    generator, outputs = torch.Generator().manual_seed(0), []
    drawn = [torch.randn(1, 41, 1, 64, generator=generator).to(dtype).transpose(1, 2) for _ in range(3)]
    query, key, value = 60 * drawn[0], 60 * drawn[1], drawn[2]
    scale = 16 / (3600 * 8)
    for tokens in (slice(0, 40), slice(40, 41)):
        part = (each[:, :, tokens] for each in (query, key, value))
        outputs.append(cache.attend(AttentionCall(module, *part, scaling=scale), None))
    scores = query[0, 0, 40].double() @ key[0, 0].double().T * scale
    assert 10 < scores.std() < 25
    expected = scores.softmax(-1) @ value[0, 0].double()
    assert outputs[1].dtype == dtype
    torch.testing.assert_close(outputs[1][0, 0, 0].double(), expected, rtol=0.01, atol=0.01)


def test_windows_of_alternating_layers_do_not_disturb_each_other():
    cache = SharedCache(torch.ones(1, 9, dtype=torch.bool), 1)
    near, far = cache._bias_over(3, 2), cache._bias_over(None, 2)
    assert far is None
    assert cache._bias_over(3, 2) is near
    assert (near == 0).sum() == 3
