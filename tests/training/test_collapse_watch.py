"""What is watched: the row of numbers by hand, the shuffled prompts, and each limit with its action and patience."""

import pytest
import torch

import tiny
from cagsr.config.schema import Term
from cagsr.rewards.reward import Reward
from cagsr.training.collapse_watch import Collapsed
from cagsr.training.kl import k3
from cagsr.training.step import Collected
from cagsr.training.step_metrics import measure, shuffled_share
from cagsr.types import Evidence, Rollout, Scores, TrainBatch


def collected_by_hand(step):
    """Two groups of two responses with 5, 3, 1 and 5 tokens; the second repeats itself, the third is empty."""
    policy = step.policy
    prompts = tiny.prompts(policy, (3, 5))
    eos = policy.eos_ids[0]
    ids = torch.tensor(
        [[3, 4, 5, 6, 7], [9, 9, eos, 0, 0], [eos, 0, 0, 0, 0], [8, 8, 8, 8, 8]],
    )
    mask = torch.arange(5) < torch.tensor([[5], [3], [1], [5]])
    prompt_ids, prompt_mask = policy.collate(prompts)
    rollout = Rollout(
        prompts,
        prompt_ids,
        prompt_mask,
        ids,
        mask,
        torch.tensor([False, True, True, False]),
        ["", "", "", ""],
    )
    old = torch.full((4, 5), -1.0) * mask
    ref = torch.full((4, 5), -1.5) * mask
    signals = torch.tensor([[1.0], [2.0], [3.0], [6.0]])
    scores = Scores(("mass",), signals, torch.tensor([1.0, 3.0, 5.0, 11.0]), signals)
    batches = [
        TrainBatch(part, ref[rows], old[rows], 2.0 * part.response_mask)
        for part, rows in zip(rollout.split(1), (slice(0, 2), slice(2, 4)), strict=True)
    ]
    return Collected(rollout, scores, batches, attended=[])


def test_the_row_of_a_step_by_hand():
    step = tiny.make_step(tiny.policy("llama"))
    row = measure(collected_by_hand(step), step.world)
    half = torch.tensor(0.5)
    expected = {
        "reward": 5.0,
        # Standard deviations of (1, 3) and (5, 11) are 1 and 3.
        "reward_spread": 2.0,
        "signal/mass": 3.0,
        "length": 3.5,
        "finished": 0.5,
        "empty": 0.25,
        # Only (8 8 8) of the last response comes again, in two of its three trigrams.
        "repetition": (2 / 3) / 4,
        "kl_response": 0.5 * 14 / 4,
        "kl": float(k3(half, torch.tensor(0.0))),
        "entropy": 2.0,
        "tokens": 14.0,
    }
    assert row == pytest.approx(expected)


def read_prompt(evidence):
    """How far the response's mean token is from the mean token of its prompt: only the right prompt is near."""
    rollout = evidence.rollout

    def mean(ids, mask):
        return (ids * mask).sum(-1) / mask.sum(-1)

    prompt = evidence.per_row(mean(rollout.prompt_ids, rollout.prompt_mask))
    return -(prompt - mean(rollout.response_ids, rollout.response_mask)).abs()


@pytest.mark.parametrize(("signal", "expected"), [(read_prompt, 0.0), (tiny.low_tokens, 1.0)])
def test_trap_25_a_reward_that_stops_reading_the_prompt_is_seen(signal, expected):
    step = tiny.make_step(tiny.policy("llama"), reward=Reward([Term("signal")], extra={"signal": signal}))
    policy = step.policy
    # Responses that repeat their own prompt's tokens.
    prompts = tiny.prompts(policy, (3, 5, 7))
    prompt_ids, prompt_mask = policy.collate(prompts)
    ids = prompt_ids.repeat_interleave(2, 0).flip(1)
    mask = prompt_mask.repeat_interleave(2, 0).flip(1)
    rollout = Rollout(prompts, prompt_ids, prompt_mask, ids, mask, torch.zeros(6).bool(), [""] * 6)
    parts = [Evidence(p, step.observer.observe(p), step.salience(p)) for p in rollout.split(1)]
    signals = torch.cat([step.reward.measure(part) for part in parts])
    scores = Scores(("signal",), signals, signals[:, 0], signals)
    assert shuffled_share(step, Collected(rollout, scores, [], [])) == expected


def test_a_single_group_has_no_other_prompt_to_be_compared_with():
    step = tiny.make_step(tiny.policy("llama"))
    collected = step.collect(tiny.prompts(step.policy, (5,)), seed=0)
    assert shuffled_share(step, collected) is None


def watch(name, limit, action="warn", patience=1):
    return tiny.watch(**{name: tiny.limit(limit=limit, action=action, patience=patience)})


@pytest.mark.parametrize(
    ("name", "limit", "good", "bad", "reason"),
    [
        ("length", 2.0, [10, 19, 6], 21, "length is 2.1 times that of the first step, above 2"),
        ("length", 2.0, [10, 19, 6], 4, "length is 0.4 times that of the first step, below 1/2"),
        ("entropy", 0.3, [2.0, 3.0, 0.7], 0.5, "entropy is 0.25 times that of the first step, below 0.3"),
        ("repetition", 0.2, [0.0, 0.2], 0.21, "repetition is 0.21, above 0.2"),
        ("kl", 0.5, [0.0, 0.5], 0.7, "kl is 0.7, above 0.5"),
        ("shuffled", 0.6, [0.1, 0.6], 0.8, "shuffled is 0.8, above 0.6"),
    ],
)
def test_trap_25_each_limit_says_why_it_fires(name, limit, good, bad, reason):
    watched = watch(name, limit)
    for step, value in enumerate(good):
        assert watched.check(step, {name: value}) == []
    (message,) = watched.check(7, {name: bad})
    assert message == f"step 7: {reason}, for 1 checks in a row (watch.{name})"
    stopping = watch(name, limit, "stop")
    for step, value in enumerate(good):
        stopping.check(step, {name: value})
    with pytest.raises(Collapsed, match=r"step 7: .*Stopped\. Look at candidates\.jsonl") as caught:
        stopping.check(7, {name: bad})
    assert reason in str(caught.value)
    assert caught.value.exit_code == 75


def test_trap_25_patience_counts_checks_in_a_row():
    watched = watch("kl", 0.5, patience=3)
    values = [0.9, 0.9, 0.1, 0.9, 0.9, 0.9, 0.9, 0.1]
    fired = [bool(watched.check(step, {"kl": value})) for step, value in enumerate(values)]
    assert fired == [False, False, False, False, False, True, True, False]


def test_a_number_that_is_not_measured_at_a_step_neither_counts_nor_resets():
    watched = watch("shuffled", 0.5, patience=2)
    assert watched.check(0, {"shuffled": 0.9}) == []
    assert watched.check(1, {"kl": 0.0}) == []
    assert len(watched.check(2, {"shuffled": 0.9})) == 1


def test_no_limit_watches_nothing():
    assert watch("kl", None, "stop").check(0, {"kl": 1e9}) == []


@pytest.mark.parametrize(("empty", "said"), [(0.49, []), (0.5, ["step 3: 50% of the responses are empty"])])
def test_empty_responses_are_warned_of_from_half_of_them_on(empty, said):
    assert tiny.watch().check(3, {"empty": empty}) == said


def test_a_watch_continues_where_its_state_was_saved():
    first = tiny.watch(length=tiny.limit(limit=2.0, action="stop", patience=3))
    for step, length in enumerate([10.0, 30.0, 30.0]):
        first.check(step, {"length": length})
    second = tiny.watch(length=tiny.limit(limit=2.0, action="stop", patience=3))
    second.restore(first.state())
    with pytest.raises(Collapsed, match="length is 3 times that of the first step"):
        second.check(3, {"length": 30.0})
