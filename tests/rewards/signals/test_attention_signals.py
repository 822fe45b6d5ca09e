"""Signals that read the attention, against values computed by hand."""

import math
from dataclasses import replace

import pytest
import torch

from cagsr.rewards.signals import SIGNALS
from evidence import make_evidence

coverage, focus, grounding = SIGNALS["coverage"], SIGNALS["focus"], SIGNALS["grounding"]
lookback, mass, shift = SIGNALS["lookback"], SIGNALS["mass"], SIGNALS["shift"]

# Two responses of three tokens to one prompt of five; the last prompt token is template.
ROWS = [
    [[0.5, 0.0, 0.1, 0.0, 0.4], [0.2, 0.6, 0.0, 0.0, 0.1], [0.0, 0.3, 0.0, 0.2, 0.5]],
    [[0.9, 0.0, 0.0, 0.0, 0.0], [0.9, 0.0, 0.0, 0.0, 0.0], [0.9, 0.0, 0.0, 0.0, 0.0]],
]
WEIGHTS = [[0.4, 0.3, 0.2, 0.1, 0.0]]


def values(signal, rows=ROWS, **given):
    options = given.pop("options", {})
    return signal(make_evidence(rows, **given), **options).tolist()


def test_coverage_takes_the_best_look_at_each_prompt_token():
    found = values(coverage, salience=WEIGHTS)
    assert found == pytest.approx([0.4 * 0.5 + 0.3 * 0.6 + 0.2 * 0.1 + 0.1 * 0.2, 0.4 * 0.9])


def test_coverage_as_noisy_or_lets_several_looks_add_up():
    found = values(coverage, salience=WEIGHTS, options={"saturation": "noisy_or"})
    first = 0.4 * (1 - 0.5 * 0.8) + 0.3 * (1 - 0.4 * 0.7) + 0.2 * 0.1 + 0.1 * 0.2
    assert found == pytest.approx([first, 0.4 * (1 - 0.1**3)])


def test_coverage_as_capped_sum_stops_at_its_cap():
    found = values(coverage, salience=WEIGHTS, options={"saturation": "capped_sum", "cap": 0.8})
    assert found == pytest.approx([0.4 * 0.7 + 0.3 * 0.8 + 0.2 * 0.1 + 0.1 * 0.2, 0.4 * 0.8])


def test_gated_coverage_pays_for_looking_only_while_the_written_token_is_believed():
    confidence = [[1.0, 0.5, 0.25], [0.1, 0.1, 0.1]]
    found = values(coverage, salience=WEIGHTS, confidence=confidence, options={"gate": True})
    assert found == pytest.approx([0.4 * 0.5 + 0.3 * 0.3 + 0.2 * 0.1 + 0.1 * 0.05, 0.4 * 0.09])
    assert values(coverage, salience=WEIGHTS, confidence=confidence) == values(coverage, salience=WEIGHTS)


def test_coverage_prefers_all_of_the_prompt_to_one_focused_clause_and_mass_does_not():
    broad, focused = values(coverage, salience=WEIGHTS)
    assert broad > focused
    broad, focused = values(mass, salience=WEIGHTS)
    assert broad < focused


def test_the_end_of_sequence_token_covers_nothing():
    said = values(coverage, salience=WEIGHTS, lengths=[2, 2])
    assert values(coverage, salience=WEIGHTS, finished=[True, True]) == pytest.approx(said)
    assert said[0] == pytest.approx(0.4 * 0.5 + 0.3 * 0.6 + 0.2 * 0.1)


def test_mass_is_the_mean_attention_on_content_tokens_unweighted():
    assert values(mass, salience=WEIGHTS) == pytest.approx([(0.6 + 0.8 + 0.5) / 3, 0.9])


def test_lookback_is_the_mean_attention_on_the_whole_prompt():
    assert values(lookback, salience=WEIGHTS) == pytest.approx([(1.0 + 0.9 + 1.0) / 3, 0.9])


def test_focus_is_minus_the_normalised_entropy_of_the_rows():
    rows = [
        [[0.25, 0.25, 0.25, 0.25], [0.1, 0.1, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]],
        [[0.3, 0.0, 0.0, 0.0], [0.0, 0.3, 0.0, 0.0], [0.0, 0.0, 0.0, 0.6]],
    ]
    entropies = (1.0 + math.log(2) / math.log(4) + 0.0) / 3
    assert values(focus, rows) == pytest.approx([-entropies, 0.0], abs=1e-6)
    high = values(focus, rows, options={"direction": "high_entropy"})
    assert high == pytest.approx([entropies, 0.0], abs=1e-6)


def test_focus_counts_the_prompts_own_tokens_and_not_the_padding():
    rows = [[[0.2, 0.2, 0.2, 0.0, 0.0]]]
    mask = [[True, True, True, False, False]]
    assert values(focus, rows, prompt_mask=mask) == pytest.approx([-1.0])


def test_focus_leaves_out_rows_that_do_not_look_at_the_prompt():
    rows = [[[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]]
    assert values(focus, rows) == pytest.approx([-math.log(2) / math.log(3)])


def test_clamped_focus_gains_and_loses_nothing_beyond_its_limits():
    rows = [[[1.0, 0.0, 0.0, 0.0]], [[0.5, 0.5, 0.0, 0.0]], [[0.25, 0.25, 0.25, 0.25]]]
    clamp = {"clamp": [0.3, 0.8]}
    assert values(focus, rows, options=clamp) == pytest.approx([-0.3, -0.5, -0.8])
    both = {**clamp, "direction": "high_entropy"}
    assert values(focus, rows, options=both) == pytest.approx([0.3, 0.5, 0.8])


@pytest.mark.parametrize(("direction", "worst"), [("low_entropy", -1.0), ("high_entropy", 0.0)])
def test_an_empty_response_has_the_worst_focus_of_either_direction(direction, worst):
    found = values(focus, lengths=[0, 1], finished=[False, True], options={"direction": direction})
    assert found == [worst, worst]


def test_focus_of_prompts_of_one_and_two_tokens_is_defined():
    assert values(focus, [[[0.7]]]) == pytest.approx([0.0], abs=1e-6)
    assert values(focus, [[[0.3, 0.3]]]) == pytest.approx([-1.0])


def test_shift_is_one_bit_between_disjoint_rows_and_zero_between_equal_ones():
    rows = [
        [[0.5, 0.0, 0.0], [0.0, 0.2, 0.2], [0.0, 0.4, 0.4]],
        [[0.1, 0.2, 0.3], [0.2, 0.4, 0.6], [0.05, 0.1, 0.15]],
    ]
    assert values(shift, rows) == pytest.approx([0.5, 0.0], abs=1e-6)
    assert values(shift, rows, options={"direction": "still"}) == pytest.approx([-0.5, 0.0], abs=1e-6)


def test_shift_between_half_overlapping_rows_is_known():
    # JS((1, 0), (1/2, 1/2)) = H(3/4, 1/4) - H(1/2, 1/2) / 2 in bits.
    expected = -0.75 * math.log2(0.75) - 0.25 * math.log2(0.25) - 0.5
    assert values(shift, [[[0.8, 0.0], [0.3, 0.3]]]) == pytest.approx([expected])


def test_shift_leaves_out_pairs_with_a_row_that_does_not_look():
    assert values(shift, [[[0.5, 0.0], [0.0, 0.0], [0.0, 0.5]]]) == [0.0]
    assert values(shift, [[[0.5, 0.0], [0.0, 0.5], [0.0, 0.0]]]) == pytest.approx([1.0])


def test_grounding_pays_only_where_the_prompt_token_itself_is_written():
    ids = {"prompt_ids": [[21, 22, 23, 24, 25]], "response_ids": [[21, 23, 22], [22, 22, 25]]}
    # 21 while looking at it .5; 23 while not looking; 22 with .3; then nothing, and 25 weighs nothing.
    assert values(grounding, salience=WEIGHTS, **ids) == pytest.approx([0.4 * 0.5 + 0.3 * 0.3, 0.0])


def test_grounding_by_probability_pays_for_what_could_have_been_written():
    probability = torch.zeros(2, 3, 5)
    probability[0, 0] = torch.tensor([0.5, 1.0, 1.0, 1.0, 1.0])
    probability[0, 1] = torch.tensor([1.0, 0.5, 1.0, 1.0, 1.0])
    probability[1] = 0.1
    logs = probability.clamp(min=1e-9).log()
    found = values(grounding, salience=WEIGHTS, prompt_logprobs=logs, options={"weighted": "probability"})
    first = 0.4 * 0.25 + 0.3 * 0.3 + 0.2 * 0.1
    assert found == pytest.approx([first, 0.4 * 0.09])


def test_grounding_by_probability_leaves_out_the_end_of_sequence_token():
    options = {"weighted": "probability"}
    found = values(grounding, salience=WEIGHTS, finished=[True, False], options=options)
    # Every probability is 1 here: coverage without the third row of the first response.
    assert found == pytest.approx([0.4 * 0.5 + 0.3 * 0.6 + 0.2 * 0.1, 0.4 * 0.9])


def test_grounding_saturates_like_coverage():
    ids = {"prompt_ids": [[21, 22, 23, 24, 25]], "response_ids": [[21, 21, 22], [21, 21, 21]]}
    noisy = values(grounding, salience=WEIGHTS, options={"saturation": "noisy_or"}, **ids)
    assert noisy == pytest.approx([0.4 * (1 - 0.5 * 0.8) + 0.3 * 0.3, 0.4 * (1 - 0.1**3)])
    capped = values(grounding, salience=WEIGHTS, options={"saturation": "capped_sum", "cap": 0.6}, **ids)
    assert capped == pytest.approx([0.4 * 0.6 + 0.3 * 0.3, 0.4 * 0.6])


def test_how_strongly_pieces_are_looked_at_is_in_float32_whatever_passes_are_made_in():
    """As where attention is read by piece: the two may not differ by the rounding of bfloat16."""
    pieces = torch.tensor([[[True, True, False, False, False], [False, False, True, True, False]]])
    evidence = replace(make_evidence([[[0.501, 0.0, 0.103, 0.0, 0.4]] * 3], salience=WEIGHTS), pieces=pieces)
    exact = SIGNALS["attended"](evidence)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(SIGNALS["attended"](evidence), exact)
