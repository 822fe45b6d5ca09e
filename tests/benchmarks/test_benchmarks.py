"""What the benchmarks count, compare and promise; and that what is compared computes the same."""

import json
from dataclasses import replace

import pytest
import torch
import trl.trainer.utils as trl_utils
from transformers import AutoModelForCausalLM

from benchmarks.against_trl import constants
from benchmarks.growth import floor_flops
from benchmarks.protocol import Bound, Spread, Taken, exponent, peak_bytes, ratios, spread, take_turns
from benchmarks.record import Part, Plan, Table, keep
from benchmarks.step import Clock
from benchmarks.subjects import Shape, saved, step_of, texts
from benchmarks.trl_step import EagerCoverage, TrlStep
from benchmarks.variants import EncodesEachCandidate, ReadsEachCandidate, apart
from benchmarks.verdicts import matrix, outcomes, rows
from cagsr.config.schema import Term
from cagsr.rewards.reward import Reward
from cagsr.rewards.segments import segments
from cagsr.types import Evidence

CAUSAL = Shape(
    layers=2, hidden=20, heads=5, vocabulary=103, prompts=3, candidates=5, prompt_tokens=13, response_tokens=7
)
ENCODER_DECODER = replace(CAUSAL, architecture="t5")


@pytest.fixture(scope="module")
def causal():
    with saved(CAUSAL) as directory:
        yield directory


def test_every_way_has_one_turn_a_round_in_changing_order_and_the_warm_up_is_not_kept():
    order = []
    ways = {name: lambda name=name: order.append(name) for name in "abc"}
    taken = take_turns(ways, rounds=11)
    assert {name: len(each) for name, each in taken.items()} == {"a": 11, "b": 11, "c": 11}
    by_round = ["".join(order[start : start + 3]) for start in range(0, len(order), 3)]
    assert len(by_round) == 12
    assert {"".join(sorted(one)) for one in by_round} == {"abc"}
    assert len(set(by_round)) > 2


def test_a_ratio_is_taken_within_its_round_and_the_median_and_range_are_of_those():
    assert ratios([2.0, 30.0, 8.0], [1.0, 10.0, 2.0]) == Spread(median=3.0, low=2.0, high=4.0)
    assert spread([5.0, 1.0, 2.0, 4.0]) == Spread(median=3.0, low=1.0, high=5.0)
    assert spread([5.0, 1.0, 2.0, 4.0]).text(1) == "3.0 (1.0-5.0)"


def test_the_exponent_of_a_power_is_found_again():
    sizes = [2, 3, 5, 7, 11]
    assert exponent(sizes, [0.3 * size**1.7 for size in sizes]) == pytest.approx(1.7, abs=1e-12)
    assert exponent(sizes, [4.0] * 5) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("at", "median", "verdict"),
    [
        ("least", 2.0, "met"),
        ("least", 1.5, "missed by 25.0 %"),
        ("least", 3.0, "met"),
        ("most", 2.0, "met"),
        ("most", 2.5, "missed by 25.0 %"),
        ("most", 1.0, "met"),
    ],
)
def test_the_median_decides_whether_a_bound_is_met_and_by_what_part_of_it_not(at, median, verdict):
    assert Bound("", at, 2.0, Spread(median, 0.0, 9.0)).verdict == verdict


def test_peak_memory_is_what_was_held_at_once():
    def work():
        torch.zeros(3, 2**18)
        one, other = torch.zeros(2**18), torch.zeros(2**18)
        return one + other

    assert peak_bytes(work) == 3 * 2**20


def test_the_floor_counts_every_product_once_for_sampling_and_scoring_and_three_times_for_training():
    shape = Shape(
        layers=7, hidden=2, vocabulary=3, prompts=1, candidates=5, prompt_tokens=3, response_tokens=2
    )
    # Tokens: 3 + 5 * 2. Pairs of query and key: 1 + 2 + 3 in the prompt, 4 + 5 in each response.
    linear, attention, head = 13 * 2 * (4 * 2 * 2 + 3 * 2 * 4), 4 * 2 * (6 + 5 * 9), 2 * 2 * 3 * 10
    assert floor_flops(shape) == 5 * (7 * (linear + attention) + head)


def test_the_time_of_a_call_within_a_call_is_counted_once(monkeypatch):
    now = 0.0

    def pass_by(seconds, then=lambda: None):
        nonlocal now
        now += seconds
        then()

    monkeypatch.setattr("time.process_time", lambda: now)
    clock = Clock()
    inner = clock.timed("inner", pass_by)
    clock.timed("outer", pass_by)(3.0, lambda: (inner(5.0), inner(7.0)))
    assert clock.seconds == {"outer": 3.0, "inner": 12.0}


def test_prompts_are_ragged_of_the_lengths_that_were_asked_for_and_fall_into_pieces(causal):
    step, prompts = step_of(CAUSAL, causal)
    assert [len(prompt.ids) for prompt in prompts] == CAUSAL.lengths == [13, 9, 6]
    rollout = step.policy.sample(prompts, step.sampling)
    assert rollout.response_mask.all()
    assert rollout.response_ids.shape == (15, 7)
    pieces = segments(Evidence(rollout, None, step.salience(rollout)))
    assert pieces.any(-1).sum(-1).tolist() == [3, 2, 1]


@pytest.mark.parametrize(
    ("shape", "variant"), [(CAUSAL, ReadsEachCandidate), (ENCODER_DECODER, EncodesEachCandidate)]
)
def test_the_variant_without_sharing_computes_the_same_from_every_candidates_own_prompt(shape, variant):
    with saved(shape) as directory:
        (step, prompts), (other, _) = step_of(shape, directory), step_of(shape, directory, as_policy=variant)
    shared, plain = step.policy, other.policy
    assert type(plain) is variant
    rollout = shared.sample(prompts, step.sampling)
    read = plain.model if variant is ReadsEachCandidate else plain.model.get_encoder()
    shapes = []
    read.register_forward_pre_hook(
        lambda _, __, named: shapes.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    observed = plain.observe(rollout)
    assert shapes == [(15, 13 + (7 if variant is ReadsEachCandidate else 0))]
    for name, value in vars(shared.observe(rollout)).items():
        torch.testing.assert_close(getattr(observed, name), value, rtol=1e-5, atol=1e-5, msg=name)
    for policy in (shared, plain):
        policy(rollout).logprobs.sum().backward()
    gradients = dict(shared.named_parameters())
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-4, atol=1e-4, msg=name)
    assert torch.equal(plain.sample(prompts, step.sampling).response_ids, rollout.response_ids)


def test_rows_apart_are_groups_of_one(causal):
    step, prompts = step_of(CAUSAL, causal)
    rollout = step.policy.sample(prompts, step.sampling)
    rows = apart(rollout)
    assert rows.group_size == 1
    assert [prompt.index for prompt in rows.prompts] == [0] * 5 + [1] * 5 + [2] * 5
    assert torch.equal(rows.prompt_mask[5:10], rollout.prompt_mask[1].expand(5, -1))


def test_the_reward_that_trl_pays_for_is_coverage(causal):
    step, prompts = step_of(CAUSAL, causal)
    rollout = step.policy.sample(prompts, step.sampling)
    evidence = Evidence(rollout, step.policy.observe(rollout), step.salience(rollout))
    expected = Reward([Term("coverage", standardise="none")]).measure(evidence).squeeze(-1)
    model = AutoModelForCausalLM.from_pretrained(causal, attn_implementation="eager")
    eager = EagerCoverage(model, step.policy.tokenizer)
    repeated = [text for text in texts(CAUSAL) for _ in range(5)]
    found = eager(prompts=repeated, completion_ids=rollout.response_ids.tolist())
    torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-5, atol=1e-5)


def test_a_call_lets_trl_take_exactly_one_optimizer_step_on_the_same_prompts(causal):
    trl = TrlStep(CAUSAL, causal, constants)
    asked = []
    trl.reward = lambda prompts, completion_ids, **_: (
        asked.append((prompts, completion_ids)) or constants(prompts)
    )
    before = trl.trainer.model.lm_head.weight.detach().clone()
    for number in range(1, 3):
        trl()
        assert trl.trainer.state.global_step == number == len(asked)
    trl.end()
    assert not torch.equal(before, trl.trainer.model.lm_head.weight)
    for prompts, responses in asked:
        assert sorted(prompts) == sorted(text for text in texts(CAUSAL) for _ in range(5))
        assert {len(response) for response in responses} == {7}


def test_trl_with_a_compact_head_scores_the_same_and_computes_no_position_of_a_prompt(causal, monkeypatch):
    scored, positions = [], []
    trl = TrlStep(CAUSAL, causal, constants)
    ask, head = trl.trainer._get_per_token_logps_and_entropies, trl_utils._ChunkedLogProbFunction

    def watched(model, ids, *given, **named):
        found = ask(model, ids, *given, **named)
        scored.append((ids, given, found[0].detach()))
        return found

    class Counted(head):
        @staticmethod
        def forward(ctx, hidden, *given):
            positions.append(len(hidden))
            return head.forward(ctx, hidden, *given)

    monkeypatch.setattr(trl.trainer, "_get_per_token_logps_and_entropies", watched)
    monkeypatch.setattr(trl_utils, "_ChunkedLogProbFunction", Counted)
    trl.compact = True
    trl()
    trl.end()
    assert positions == [15 * 7] * 2
    ids, given, compact = scored[0]  # those of the reference, which does not change
    with torch.no_grad():
        plain = ask(trl.trainer.ref_model, ids, *given)[0]
    assert positions[2] == 15 * (13 + 7 - 1)
    torch.testing.assert_close(compact, plain, rtol=1e-5, atol=1e-5)


def part(title, median):
    table = Table("Seconds:", ["Way", "Seconds"], [["fast", "1.0"]])
    bound = Bound("fast", "most", 2.0, Spread(median, 1.0, 5.0), "x")
    return Part(title, "How it was\nmeasured.\n\n- one\n- two", [table], [bound], {"fast": [Taken(1.0, 2.0)]})


def test_a_part_measured_again_replaces_what_the_record_had_of_it_and_nothing_else(tmp_path):
    order = ["first", "second"]
    keep(tmp_path, "second", part("Second", 3.0), Plan(10, quick=False), order)
    keep(tmp_path, "first", part("First", 1.0), Plan(10, quick=False), order)
    keep(tmp_path, "second", part("Second, again", 2.5), Plan(3, quick=True), order)
    record = json.loads((tmp_path / "performance.json").read_text())
    assert list(record) == order
    assert record["first"]["turns"] == {"fast": {"cpu": [1.0], "wall": [2.0]}}
    page = (tmp_path / "performance.md").read_text()
    assert "| fast | at most 2x | 1.00 (1.00-5.00)x | met | first |" in page
    assert "| fast | at most 2x | 2.50 (1.00-5.00)x | missed by 25.0 % (quick) | second |" in page
    assert "## Second, again\n\nHow it was measured.\n\n- one\n- two\n\nSeconds:\n\n| Way | Seconds |" in page
    assert "## Second\n" not in page


def test_a_probe_is_held_to_what_training_did_and_invention_is_no_help():
    base = {"headroom": 0.2, "alike": 0.0, "empty": 0.0, "unfinished": 0.0, "repeated": 0.0, "unread": 0.0}
    said = {
        "robust": ("go", 0.92),
        "paper": ("no", 0.59),
        "lexical": ("caution", 0.75),
        "length": ("no", 0.8),
    }
    probe = {
        "base": {**base, "entropy": 0.7, "greedy_quality": 0.6},
        "rewards": {
            name: {"verdict": level, "reasons": ["why"], "quality": {"auc": {"mean": auc}}}
            for name, (level, auc) in said.items()
        },
    }
    after = {"cagsr-grpo": (0.1, 0.0), "paper": (0.5, 0.0), "lexical": (0.3, 0.02), "length": (0.39, 0.019)}
    summary = {
        "systems": {name: {"slot_error_rate": {"mean": mean}} for name, (mean, _) in after.items()}
        | {"no-rl": {"slot_error_rate": {"mean": 0.4}}, "dpo": {"slot_error_rate": {"mean": 0.2}}},
        "differences": {
            f"{name}-no-rl": {
                "slot_error_rate": {"mean": mean - 0.4, "low": mean - 0.41, "high": mean - 0.39},
                "hallucination": {"mean": invented},
            }
            for name, (mean, invented) in after.items()
        },
    }
    found = outcomes("slots-t5", probe, summary)
    assert [(one.preset, one.level, one.helped) for one in found] == [
        ("robust", "go", True),
        ("paper", "no", False),
        ("lexical", "caution", False),
        ("length", "no", True),
    ]
    told = matrix((one.level, one.helped) for one in found)
    assert told.splitlines()[2:] == ["| go | 1 | 0 |", "| caution | 0 | 1 |", "| no | 1 | 1 |"]
    assert rows(found).splitlines()[2] == (
        "| slots-t5 | robust | go | 0.92 | 0.400 -> 0.100 | -0.300 [-0.310, -0.290] | +0.000 | helped |"
    )
    # A base that no reward can help is refused, whatever the reward's own verdict.
    probe["base"]["headroom"] = 0.001
    assert {one.level for one in outcomes("slots-t5", probe, summary)} == {"no"}
