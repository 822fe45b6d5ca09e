"""The table of heads: areas under the curve by hand, and the learnt heads are measured on other prompts."""

import pytest
import torch

from benchmarks.heads import Measured, auc, table


def test_an_area_counts_pairs_and_ties_half():
    scores, truth = torch.tensor([3.0, 1.0, 1.0, 2.0]), torch.tensor([True, True, False, False])
    assert auc(scores, truth) == pytest.approx((2 + 0.5) / 4)
    assert auc(scores, torch.ones(4).bool()) is None


def test_the_head_that_agrees_is_chosen_and_measured_on_the_other_prompts():
    said = torch.tensor([[True, False], [False, True], [True, True]])
    right, wrong = said.float(), 1 - said.float()
    one = Measured(torch.stack([torch.stack([right, wrong])]), right, said, torch.tensor([[2.0, -2.0]]), 2)
    lines = table([one, one, one], 1)
    assert lines[0] == "2 prompts, 12 pieces, 0.67 said; heads learnt on 1 prompts, 2 pieces"
    assert lines[-1] == f"{'attention, 1 learnt heads':30s} pieces 1.000  same piece 1.000 (4 pieces)"
    assert lines[2] == f"{'attention, all heads':30s} pieces 0.500  same piece 0.500 (4 pieces)"
