"""Heads: those that order responses as knockouts do are found, by values computed by hand."""

import pytest
import torch

import tiny
from cagsr.rewards.heads import agreement, best_heads, follows, looks, undecided
from cagsr.rewards.salience import Uniform, evidence_of
from cagsr.rewards.segments import knockout, segments
from cagsr.types import Explanations
from evidence import make_evidence


def evidence_with(lost_NJ: list[list[float]], pieces: int):
    """Two groups of three responses, whose knockouts are given; every prompt has ``pieces`` pieces of one token."""
    evidence = make_evidence(torch.zeros(6, 2, 5), group_size=3)
    known: Explanations = evidence.explanations
    known.segments = torch.eye(pieces, 5).bool().expand(2, -1, -1)
    known.knockout = torch.stack([torch.tensor(lost_NJ), torch.zeros(6, pieces)], dim=1)
    return evidence


def test_a_head_agrees_by_the_rank_correlation_within_each_piece_of_each_prompt():
    lost = [[3.0, 0.0], [2.0, 0.2], [1.0, 0.4], [0.0, 5.0], [0.0, 1.0], [9.0, 3.0]]
    evidence = evidence_with(lost, 2)
    same = torch.tensor(lost)
    looked = torch.stack([same, -same, same.exp(), torch.ones(6, 2)])
    # Of the first prompt's second piece the knockouts differ by .4 nats: not counted.
    sums, counted = agreement(looked, evidence)
    assert counted == 3
    assert sums.tolist() == pytest.approx([3.0, -3.0, 3.0, 0.0])


def test_ties_share_their_rank():
    lost = [[3.0], [0.0], [0.0], [0.0], [0.0], [0.0]]
    looked = torch.tensor([[5.0], [4.0], [1.0], [0.0], [0.0], [0.0]])[None]
    # Ranks 2, .5, .5 and 2, 1, 0, centred: (1, -.5, -.5) and (1, 0, -1) have the cosine 1.5 / sqrt(1.5 * 2).
    sums, counted = agreement(looked, evidence_with(lost, 1))
    assert counted == 1
    assert sums.tolist() == pytest.approx([1.5 / 3**0.5])


def test_the_heads_that_agree_most_are_kept_and_none_that_disagrees():
    means = {3: [0.5, -0.1, 0.2], 5: [0.0, 0.4, -0.9], 7: [-0.2, -0.3, -0.1]}
    assert best_heads(means, kept=2) == {3: [1.0, 0.0, 0.0], 5: [0.0, 1.0, 0.0]}
    assert best_heads(means, kept=7) == {3: [1.0, 0.0, 1.0], 5: [0.0, 1.0, 0.0]}
    with pytest.raises(ValueError, match="no head looks at"):
        best_heads({0: [0.0, -0.5]})


@pytest.mark.parametrize("architecture", ["llama", "t5"])
def test_looks_are_the_largest_mean_over_a_piece_that_each_head_gives(architecture: str):
    policy = tiny.policy(architecture)
    rollout = policy.sample(tiny.prompts(policy), tiny.sampling(candidates=3, max_new_tokens=5), seed=1)
    evidence = evidence_of(rollout, policy.observe(rollout), Uniform(), policy)
    found = looks(policy, evidence)
    whole = policy.observe_heads(rollout, lambda attention: attention)
    pieces = evidence.per_row(segments(evidence))
    assert set(found) == set(policy.readable.layers)
    for layer, heads in found.items():
        for head, looked in enumerate(heads):
            for row in range(looked.shape[0]):
                for piece in range(looked.shape[1]):
                    taken = pieces[row, piece]
                    expected = (
                        whole[layer][head][row][:, taken].mean(-1).max() if taken.any() else torch.tensor(0.0)
                    )
                    torch.testing.assert_close(looked[row, piece], expected)
    assert knockout(evidence).shape[-1] == next(iter(found.values())).shape[-1]


def test_knockouts_near_their_threshold_are_undecided():
    """Within 2 nats of 3, the ends excluded: 1.5, 4.9 and 3 of eight."""
    lost = [torch.tensor([[-1.0, 1.0], [1.5, 4.9]]), torch.tensor([[3.0, 5.0, 30.0, 0.0]])]
    assert undecided(lost) == 3 / 8


def test_looks_follow_knockouts_by_their_rank_correlation_over_responses_and_pieces():
    """Of the first prompt the ranks are the same, of the second (2, 0, 1) against (0, 1, 2): (1 - 1/2) / 2."""
    looked = [torch.tensor([[0.1, 0.3], [0.2, 0.9]]), torch.tensor([[0.9, 0.1, 0.2]])]
    lost = [torch.tensor([[-1.0, 2.0], [0.0, 30.0]]), torch.tensor([[1.0, 2.0, 3.0]])]
    assert follows(looked, lost) == pytest.approx(0.25)
