"""Segments of a prompt, and what each explains of a response."""

from dataclasses import replace

import pytest
import torch

from cagsr.errors import InputError
from cagsr.models.reference import Reference
from cagsr.rewards.salience import Uniform
from cagsr.rewards.segments import knockout, segments, without
from cagsr.types import Evidence
from evidence import make_evidence, make_prompt
from tiny import policy, prompts, sampling

E2E = "name : The Vaults ; family friendly : no , price range = more than 30"


def evidence_of(*texts):
    made = [make_prompt(text, index=index) for index, text in enumerate(texts)]
    width = max(len(prompt.ids) for prompt in made) + 2
    mask = torch.tensor([[0] * (width - len(p.ids)) + [1] * len(p.ids) for p in made]).bool()
    evidence = make_evidence(
        torch.zeros(2 * len(made), 3, width), group_size=2, prompts=made, prompt_mask=mask
    )
    return replace(evidence, salience=Uniform()(evidence.rollout))


def words_of(evidence, row, piece):
    prompt, mask = evidence.rollout.prompts[row], evidence.rollout.prompt_mask[row]
    taken = segments(evidence)[row, piece][mask]
    return [prompt.text[a:b] for (a, b), is_in in zip(prompt.offsets, taken, strict=True) if is_in]


def test_a_field_and_its_value_are_one_segment_and_a_stop_word_or_comma_ends_any_other():
    evidence = evidence_of(
        E2E, "tea , day monday to the sea", "rating : 3 out of 5 ; area : a b is all of it far"
    )
    assert segments(evidence).shape == (3, 3, evidence.salience.shape[1])
    assert words_of(evidence, 0, 0) == ["name", "Vaults"]
    assert words_of(evidence, 0, 1) == ["family", "friendly", "no"]
    assert words_of(evidence, 0, 2) == ["price", "range", "30"]
    assert [words_of(evidence, 1, piece) for piece in range(3)] == [["tea"], ["day", "monday"], ["sea"]]
    # Four stop words in a row are no part of a value.
    assert [words_of(evidence, 2, piece) for piece in range(3)] == [
        ["rating", "3", "5"],
        ["area", "b"],
        ["far"],
    ]


def test_a_prompt_without_content_has_one_empty_segment_that_explains_nothing():
    evidence = evidence_of("the of ;")
    assert segments(evidence).shape[1] == 1
    assert not segments(evidence).any()
    assert knockout(evidence).tolist() == [[[0.0]] * 3] * 2


class Counting:
    """log p = - number of prompt tokens that are there, for every token."""

    def __init__(self):
        self.asked = 0

    def logprobs(self, rollout):
        self.asked += 1
        there = rollout.prompt_mask.sum(-1).repeat_interleave(rollout.group_size, 0)
        return -there[:, None].float() * rollout.response_mask


def test_what_a_segment_explains_is_what_its_absence_costs():
    evidence = replace(evidence_of("tea , day monday ;", "tea ;"), observer=Counting())
    observed = evidence.observer.logprobs(evidence.rollout)
    evidence = replace(evidence, observation=replace(evidence.observation, logprobs=observed))
    # Taking n tokens away makes this observer's log-probability greater by n; a segment that is not there, by 0.
    assert knockout(evidence).tolist() == [[[-1.0, -2.0]] * 3] * 2 + [[[-1.0, 0.0]] * 3] * 2


def test_the_passes_are_made_once_for_all_signals():
    evidence = replace(evidence_of(E2E), observer=Counting())
    first = knockout(evidence)
    assert evidence.observer.asked == 3
    assert knockout(evidence) is first
    assert evidence.observer.asked == 3


def test_evidence_with_another_part_begins_without_what_was_computed_of_the_old_one():
    evidence = replace(evidence_of("tea , day monday ;"), observer=Counting())
    assert segments(evidence) is segments(evidence)
    knockout(evidence)
    first, second = segments(evidence)[0]
    other = replace(evidence, salience=first[None].float())
    assert segments(other).tolist() == [[first.tolist()]]
    assert knockout(other).shape == (2, 3, 1)
    assert segments(evidence).tolist() == [[first.tolist(), second.tolist()]]


def test_a_pass_is_filled_with_the_segments_that_there_are():
    evidence = replace(evidence_of("tea , day monday , lemon ;", "tea ;"), observer=Counting())
    knockout(evidence)
    # Three and one, two at a time.
    assert evidence.observer.asked == 2


@pytest.mark.parametrize("name", ["t5", "bart", "llama", "mistral"])
def test_segments_of_several_prompts_in_one_pass_are_those_of_each_alone(name):
    model = policy(name, extra_eos=20)
    rollout = model.sample(prompts(model), sampling(), seed=3)
    salience = Uniform()(rollout)
    evidence = Evidence(rollout, model.observe(rollout), salience, model)
    found, pieces = knockout(evidence), segments(evidence)
    assert pieces.any(-1).sum(-1).unique().numel() > 1, "the test needs prompts of unequally many segments"
    expected = torch.zeros_like(found)
    for prompt, row in enumerate(pieces):
        for number, piece in enumerate(row[row.any(-1)]):
            part, rows = rollout.groups(prompt, prompt + 1), slice(3 * prompt, 3 * prompt + 3)
            taken = without(part, piece[None, rollout.prompt_mask[prompt]])
            width = part.response_ids.shape[1]
            difference = model.logprobs(part) - model.logprobs(taken)
            expected[rows, :width, number] = difference
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert found.abs().max() > 0.1


def test_where_nobody_can_be_asked_it_is_said():
    with pytest.raises(InputError, match="asks the observer again"):
        knockout(replace(evidence_of(E2E), observer=None))


def rollout_of(prompt_ids, prompt_mask):
    evidence = make_evidence(
        torch.zeros(2, 3, len(prompt_ids)), prompt_ids=[prompt_ids], prompt_mask=[prompt_mask]
    )
    return evidence.rollout


@pytest.mark.parametrize(
    ("mask", "taken", "ids", "left"),
    [
        # On the left padded: what is left moves to where the last token stood.
        ([0, 1, 1, 1, 1], [0, 0, 0, 1, 1], [2, 3], [0, 0, 0, 1, 1]),
        ([0, 1, 1, 1, 1], [0, 0, 1, 0, 1], [2, 4], [0, 0, 0, 1, 1]),
        # The last token stays, and so does everything.
        ([0, 1, 1, 1, 1], [0, 1, 1, 0, 0], [4, 5], [0, 0, 0, 1, 1]),
        ([1, 1, 1, 1, 0], [0, 1, 0, 0, 0], [1, 3, 4], [1, 0, 1, 1, 0]),
        # On the right padded: padding stays where it is.
        ([1, 1, 1, 1, 0], [0, 0, 0, 1, 0], [1, 2, 3], [0, 1, 1, 1, 0]),
        # Nothing would be left.
        ([0, 0, 1, 1, 1], [0, 0, 1, 1, 1], [5], [0, 0, 0, 0, 1]),
    ],
)
def test_what_is_left_of_a_prompt_ends_where_the_prompt_ended(mask, taken, ids, left):
    rollout = rollout_of([1, 2, 3, 4, 5], [bool(m) for m in mask])
    found = without(rollout, torch.tensor([taken]).bool())
    assert found.prompt_mask.long().tolist() == [left]
    assert found.prompt_ids[found.prompt_mask].tolist() == ids
    assert found.response_ids is rollout.response_ids


@pytest.mark.parametrize("name", ["llama", "t5", "bart"])
def test_a_prompt_that_is_one_segment_gives_finite_numbers(name):
    model = policy(name)
    asked = prompts(model, (3, 7, 2, 5))
    rollout = model.sample(asked, sampling(), 0)
    salience = rollout.prompt_mask.float() / rollout.prompt_mask.sum(-1, keepdim=True)
    evidence = Evidence(rollout, model.observe(rollout), salience, Reference(model))
    assert segments(evidence).any(-1).sum(-1).tolist() == [1, 1, 1, 1]
    found = knockout(evidence)
    assert found.isfinite().all()
    assert found.abs().max() > 0
    assert (found[~rollout.response_mask] == 0).all()


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_prompt_without_a_segment_is_the_prompt_that_never_had_it(name):
    model = policy(name)
    long, short = prompts(model, (7, 7))
    kept = (long.ids[:2] + long.ids[4:]) if name == "t5" else long.ids[:3]
    taken = slice(2, 4) if name == "t5" else slice(3, 7)
    short = replace(short, ids=kept)
    rollout = model.sample([long], sampling(), 0)
    piece = torch.zeros_like(rollout.prompt_mask)
    piece[:, taken] = True
    ids, mask = model.collate([short])
    expected = model.logprobs(replace(rollout, prompt_ids=ids, prompt_mask=mask))
    found = model.logprobs(without(rollout, piece))
    if name == "llama":
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    else:
        # Relative positions keep the hole: near, not equal, and both far from the whole prompt's.
        assert not torch.allclose(found, model.logprobs(rollout), atol=1e-2)
