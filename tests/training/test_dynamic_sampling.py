"""Dynamic sampling: which prompts give way, to which others, and how often it is tried."""

import pytest
import torch

import tiny
from cagsr.config.schema import AlgorithmSettings, Term, Train
from cagsr.rewards.reward import Reward
from cagsr.training.algorithms import Algorithm
from cagsr.training.dynamic_sampling import collect_step, prompts_of_rounds
from cagsr.training.prompt_order import prompts_for, step_seed

K = 3


def ready(name, alike, **settings):
    """A step whose reward is the same for all candidates of the prompts whose index is in ``alike``."""

    def partly_equal(evidence):
        told = torch.tensor([prompt.index in alike for prompt in evidence.rollout.prompts])
        return tiny.low_tokens(evidence).masked_fill(evidence.per_row(told), 0.25)

    reward = Reward([Term("partly_equal", standardise="none")], extra={"partly_equal": partly_equal})
    policy = tiny.policy(name, extra_eos=20)
    step = tiny.make_step(policy, reward=reward, groups_per_pass=2, **settings)
    calls = []
    original = step.collect
    step.collect = lambda prompts, seed: calls.append(seed) or original(prompts, seed)
    return step, tiny.prompts(policy, (3, 7, 2, 5, 4, 6, 3, 5, 7, 2, 4)), calls


def groups_of(rollout):
    """Prompt index and responses of each group, token by token."""
    rows = [ids[mask].tolist() for ids, mask in zip(rollout.response_ids, rollout.response_mask, strict=True)]
    return [(prompt.index, rows[n * K : n * K + K]) for n, prompt in enumerate(rollout.prompts)]


@pytest.mark.parametrize("name", ["t5", "llama"])
@pytest.mark.parametrize("epochs", [1, 2])
def test_prompts_without_spread_give_way_to_the_spares_of_their_places(name, epochs):
    schedule = Train(prompts_per_step=5, seed=3, replacements=1)
    algorithm = Algorithm(AlgorithmSettings(epochs=epochs))
    step, prompts, calls = ready(name, (), algorithm=algorithm)
    first, spare = prompts_of_rounds(prompts, 0, schedule)
    assert first == prompts_for(prompts, 0, 5, 3)
    # Two of the step's prompts, and the spare of one of them, have candidates that do not differ.
    alike = {first[1].index, first[4].index, spare[4].index}
    assert {first[0].index, first[2].index, first[3].index, spare[1].index}.isdisjoint(alike)
    step, prompts, calls = ready(name, alike, algorithm=algorithm)
    seed = step_seed(3, 0)
    expected = groups_of(step.collect(first, seed).rollout)
    expected[1] = groups_of(step.collect(spare, seed + 1).rollout)[1]
    calls.clear()

    collected, counted = collect_step(step, prompts, 0, schedule)
    assert calls == [seed, seed + 1]
    assert counted == {"replaced": 1.0, "flat": 1.0}
    assert groups_of(collected.rollout) == expected
    assert [len(texts) for texts in (collected.rollout.responses, collected.batches)] == [15, 3]
    # What is learnt from is of the new responses: reward, advantages, the reference's log-probabilities.
    again = step.experience(collected.rollout)
    assert torch.equal(collected.scores.reward, again.scores.reward)
    for batch, other in zip(collected.batches, again.batches, strict=True):
        assert torch.equal(batch.advantages, other.advantages)
        reference = step.reference.logprobs(batch.rollout)
        torch.testing.assert_close(batch.ref_logprobs, reference, rtol=1e-5, atol=1e-5)
    assert step.update(collected.batches)["grad_norm"] > 0


def test_what_is_still_flat_is_tried_again_and_no_oftener_than_it_may():
    schedule = Train(prompts_per_step=3, seed=5, replacements=4)
    step, prompts, calls = ready("llama", range(11))
    collected, counted = collect_step(step, prompts, 0, schedule)
    seed = step_seed(5, 0)
    assert calls == [seed + turn for turn in range(5)]
    assert counted == {"replaced": 0.0, "flat": 3.0}
    assert [prompt.index for prompt in collected.rollout.prompts] == [
        prompt.index for prompt in prompts_for(prompts, 0, 3, 5)
    ]


def test_nothing_is_sampled_again_where_all_differ_or_no_round_is_allowed():
    step, prompts, calls = ready("llama", ())
    _, counted = collect_step(step, prompts, 0, Train(prompts_per_step=3, replacements=4))
    assert (len(calls), counted) == (1, {"replaced": 0.0, "flat": 0.0})
    step, prompts, calls = ready("llama", range(11))
    assert collect_step(step, prompts, 0, Train(prompts_per_step=3))[1] == {}
    assert len(calls) == 1
