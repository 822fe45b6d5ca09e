"""Adversaries, signals that rewards share, and the verdict."""

from dataclasses import replace
from math import nan

import numpy as np
import pytest
import torch
from accelerate import Accelerator

import tiny
from cagsr.config.schema import Term
from cagsr.data.adversaries import ADVERSARIES
from cagsr.data.preferences import Pair
from cagsr.distributed.process_group import World
from cagsr.evaluation.evaluator import Answers
from cagsr.metrics.bootstrap import Interval
from cagsr.probing.ranking import Ranked
from cagsr.probing.samples import Probed, adversary_shares, observe, pair_accuracy, share_flat
from cagsr.probing.verdict import Base, Found, Verdict, advised, hint, judge_base, judge_reward, overall
from cagsr.rewards.presets import PRESETS, load_preset
from cagsr.rewards.reward import Reward
from cagsr.rewards.reward_set import Panel, label
from cagsr.rewards.salience import Uniform
from cagsr.rewards.signals import SIGNALS

# Adversaries

PROMPT, OWN, OTHER = (
    "name : Zizzi ; food : Thai",
    "Zizzi is here, it has Thai.",
    "Aromi is there, it has chips.",
)


def test_adversaries_are_made_of_the_prompt_and_of_what_the_base_wrote():
    made = {name: adversary(PROMPT, OWN, OTHER, 3) for name, adversary in ADVERSARIES.items()}
    assert made.pop("inserted") in {
        f"{start}{clause}{end}"
        for clause in ("Aromi is there,", "it has chips.")
        for start, end in (("Zizzi is here, ", " it has Thai."), ("Zizzi is here, it has Thai. ", ""))
    }
    assert made == {
        "copied": PROMPT,
        "first clause": "Zizzi is here,",
        "repeated": "Zizzi is here, Zizzi is here, Zizzi is here,",
        "other": OTHER,
        "symbols": ": ; :",
        "empty": "",
    }


def test_what_is_no_other_response_is_no_adversary():
    made = {name: adversary("Zizzi", "Zizzi", "Zizzi", 3) for name, adversary in ADVERSARIES.items()}
    assert {name for name, text in made.items() if text is None} == {
        "copied",
        "first clause",
        "other",
        "inserted",
    }
    assert made["symbols"] == "."
    assert ADVERSARIES["empty"](PROMPT, " ", OTHER, 3) is None


# Signals shared

MINE = [
    Term("length", weight=2.0, standardise="none"),
    Term("length", weight=0.5, standardise="group"),
    Term("coverage", weight=1.0, standardise="none", options={"gate": True}),
]


def test_a_signal_is_measured_once_for_all_rewards():
    panel = Panel(
        {
            "mine": MINE,
            "theirs": [
                Term("coverage", weight=3.0, standardise="group", options={"saturation": "max", "gate": True})
            ],
        }
    )
    assert [term.signal for term in panel.reward.terms] == ["length", "coverage"]
    signals = np.arange(12.0, dtype=np.float32).reshape(2, 3, 2)
    assert panel.signals_of("mine", signals)[1, 2].tolist() == [10.0, 10.0, 11.0]
    expected = Reward(MINE).combine(torch.tensor(signals[..., [0, 0, 1]]).flatten(0, 1), 3).view(2, 3)
    assert panel.combine("mine", signals) == pytest.approx(expected.numpy())


def test_other_options_are_another_signal():
    panel = Panel({"plain": [Term("coverage")], "gated": [Term("coverage", options={"gate": True})]})
    assert len(panel.reward.terms) == 2
    assert label(Term("coverage", options={"saturation": "max", "gate": True})) == "coverage gate"
    assert label(Term("coverage", options={"saturation": "noisy_or"})) == "coverage noisy_or"
    assert label(Term("coverage")) == "coverage"


def test_every_preset_fits_one_panel():
    presets = {name: load_preset(name) for name in PRESETS if name != "oracle"}
    columns = len(Panel(presets).reward.terms)
    assert columns < sum(map(len, presets.values()))


# What adversaries do to a reward


def probed(own, adversaries):
    """One signal of P prompts' samples [P K], and of each adversary [P]."""
    signals = np.array(own, dtype=np.float32)[..., None]
    empty = np.zeros(signals.shape[:2])
    answers = Answers([["x"] * signals.shape[1]] * len(signals), empty, empty, empty, signals)
    theirs = {name: np.array(values, dtype=np.float32)[:, None] for name, values in adversaries.items()}
    return Probed(answers, answers, theirs)


@pytest.mark.parametrize("standardise", ["group", "none"])
def test_an_adversary_wins_where_it_beats_the_sample_that_it_was_made_of(standardise):
    panel = Panel({"r": [Term("length", weight=1.0, standardise=standardise)]})
    found = probed(
        [[2, 9, 1], [2, 9, 1], [2, 0, 1]], {"a": [3, 1, nan], "b": [2, 2, 5], "c": [nan, nan, nan]}
    )
    shares = adversary_shares("r", found, panel, panel)
    assert (shares["a"], shares["b"]) == (0.5, pytest.approx(2 / 3))
    assert np.isnan(shares["c"])
    assert (
        adversary_shares("r", found, panel, Panel({"r": [Term("length")], "s": [Term("mass")]}))["a"] == 0.5
    )


def test_a_negative_weight_turns_the_winner_round():
    panel = Panel({"r": [Term("length", weight=-1.0, standardise="none")]})
    assert adversary_shares("r", probed([[2, 9, 1]], {"a": [3]}), panel, panel) == {"a": 0.0}


def test_a_group_is_flat_when_all_its_rewards_are_the_same():
    assert (
        share_flat(np.array([[1.0, 1.0, 1.0 + 1e-9], [1.0, 2.0, 1.0], [0.0, 0.0, 0.0], [3.0, 3.0, 2.0]]))
        == 0.5
    )


@pytest.fixture(scope="module", params=["t5", "llama"])
def base(request):
    policy = tiny.policy(request.param, extra_eos=60)
    prompts = tiny.prompts(policy, (5, 7, 3))
    rewards = {
        "length": [Term("length", weight=1.0, standardise="none")],
        "logprob": [Term("reference_logprob", weight=1.0, standardise="none")],
    }
    panel = Panel(rewards | {"coverage": [Term("coverage")]})
    return policy, prompts, panel, Panel(rewards)


def look(base, prompts_per_pass):
    policy, prompts, panel, adversarial = base
    how = {"prompts_per_pass": prompts_per_pass, "world": World(Accelerator(cpu=True))}
    return observe(policy, prompts, tiny.SHORT, panel, adversarial, Uniform(), **how)


def test_the_base_is_observed_the_same_in_passes_of_any_size(base):
    found, again = look(base, 2), look(base, 3)
    assert found.sampled.responses == again.sampled.responses
    assert found.sampled.signals == pytest.approx(again.sampled.signals, abs=1e-5)
    for name, signals in found.adversaries.items():
        assert signals == pytest.approx(again.adversaries[name], abs=1e-4, nan_ok=True)


def test_adversaries_are_measured_under_the_prompt_that_they_are_made_for(base):
    policy, prompts, _, _ = base
    found = look(base, 2)
    own = [texts[0] for texts in found.sampled.responses]
    limit = tiny.SHORT.max_new_tokens
    assert set(found.adversaries) == {*ADVERSARIES, "shuffled"}
    copied = policy.given(prompts, [prompt.text for prompt in prompts], limit)
    assert found.adversaries["copied"][:, 0].tolist() == copied.lengths.tolist()
    for name, asked, texts in (
        ("other", prompts, own[1:] + own[:1]),
        ("shuffled", prompts[1:] + prompts[:1], own),
    ):
        rollout = policy.given(asked, texts, limit)
        expected = policy.logprobs(rollout).sum(-1) / rollout.lengths
        assert found.adversaries[name][:, 1] == pytest.approx(expected.numpy(), abs=1e-4)


def test_pairs_are_agreed_with_where_the_chosen_one_is_worth_more(base):
    policy, prompts, panel, _ = base
    words = "day city tea lyon"
    pairs = [
        Pair(prompts[0], words, "day"),
        Pair(prompts[1], "day", words),
        Pair(prompts[2], words, "day city tea tea"),
    ]
    how = {"limit": 7, "pairs_per_pass": 2}
    found = pair_accuracy(policy, pairs, panel, Uniform(), look(base, 3).sampled, asked=panel, **how)
    assert found["length"].tolist() == [1.0, 0.0, 0.5]
    assert set(found) == {"length", "logprob", "coverage"}


# The verdict


def around(mean, width=0.03):
    return Interval(mean, mean - width, mean + width)


def ranked(auc=0.8, gain=0.1, partial=0.3):
    return Ranked(None if auc is None else around(auc), around(gain), around(partial))


RANKED = ranked()


def by_checker(quality=RANKED, invented=0.0, repeated=0.0):
    parts = {"invented": ranked(gain=-invented), "repeated": ranked(gain=-repeated)}
    return Found({"quality": quality, "said": ranked(), **parts})


GOOD = Base(headroom=0.2, alike=0, empty=0, unfinished=0, repeated=0, unread=0, entropy=1.0)


@pytest.mark.parametrize(
    ("found", "level", "reason"),
    [
        (by_checker(), "go", "ranks the samples well: AUC 0.80 [0.77, 0.83]"),
        (by_checker(ranked(auc=0.66)), "caution", "weakly: AUC 0.66"),
        (by_checker(ranked(auc=0.52)), "no", "no better than chance: AUC 0.52 [0.49, 0.55]"),
        (by_checker(ranked(auc=None)), "no", "AUC unknown"),
        (by_checker(ranked(gain=0.02)), "no", "gains nothing: best of K +0.02 [-0.01, +0.05]"),
        (by_checker(ranked(partial=0.0)), "no", "nothing beyond length and log-probability"),
        (by_checker(invented=0.06), "no", "invents more: +0.060 a slot"),
        (by_checker(invented=0.04), "caution", "invents more: +0.040 a slot"),
        (by_checker(invented=0.01), "go", "ranks the samples well"),
        (by_checker(repeated=0.2), "no", "repeats more"),
        (replace(by_checker(), adversaries={"shuffled": 0.5}), "no", "under another prompt beats"),
        (
            replace(by_checker(), adversaries={"copied": 0.9, "empty": nan}),
            "caution",
            "the prompt copied beats",
        ),
        (replace(by_checker(), adversaries={"copied": 0.4}), "go", "the best one wins 40% of the time"),
        (replace(by_checker(), flat=0.6), "no", "60% of the prompts apart"),
        (Found(), "caution", "nothing here tells a good response"),
        (Found(adversaries={"first clause": 0.8}), "no", "the first clause alone"),
        (Found({"rouge_l": ranked(auc=0.55)}), "caution", "references do not settle it"),
        (Found({"rouge_l": ranked(auc=0.75)}), "go", "as the references do"),
        (Found({"rouge_l": ranked(auc=0.75, partial=0.01)}), "caution", "references do not settle it"),
        (Found({"rouge_l": ranked(auc=0.3)}, around(0.8), 40), "go", "with 40 labelled pairs: 0.80"),
        (Found({}, around(0.8), 7), "caution", "7 labelled pairs are too few"),
        (Found({}, around(0.52), 90), "no", "no better than chance with 90"),
        (Found({}, around(0.62), 90), "caution", "it agrees with 90"),
    ],
)
def test_a_reward_is_judged_by_the_best_truth_at_hand(found, level, reason):
    verdict = judge_reward(found)
    assert verdict.level == level
    assert reason in "; ".join(verdict.reasons)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"headroom": 0.04}, "headroom 0.040"),
        ({"unread": 0.3}, "hardly reads its prompt: 30%"),
        ({"alike": 0.7}, "70% of the prompts get one response only"),
        ({"unfinished": 0.6}, "60% samples never end"),
        ({"repeated": 0.6}, "said before"),
        ({"empty": 0.9}, "are empty"),
    ],
)
def test_a_base_that_no_reward_helps_is_refused(change, reason):
    verdict = judge_base(replace(GOOD, **change))
    assert verdict.level == "no"
    assert reason in verdict.reasons[0]


def test_a_base_in_order_leaves_the_verdict_to_the_reward():
    go, no, caution = Verdict("go", ()), Verdict("no", ("base",)), Verdict("caution", ("reward",))
    assert judge_base(GOOD) == go
    assert judge_base(replace(GOOD, headroom=None)) == go
    assert overall(no, caution) == no
    assert overall(no, Verdict("no", ("reward",))) == Verdict("no", ("base", "reward"))
    assert overall(go, caution) == caution


def test_the_configured_reward_is_kept_unless_another_is_clearly_better():
    found = {
        name: by_checker(ranked(auc))
        for name, auc in (("mine", 0.8), ("b", 0.84), ("c", 0.9), ("oracle", 1.0))
    }
    verdicts = {name: judge_reward(one) for name, one in found.items()}
    without_c = {name: verdicts[name] for name in ("mine", "b", "oracle")}
    assert advised(without_c, found, "mine") == "mine"
    assert advised(verdicts, found, "mine") == "c"
    assert advised(verdicts, found, "oracle") == "oracle"
    assert advised(verdicts | {"mine": Verdict("no", ())}, found, "mine") == "c"
    assert hint(found, "mine") == "c alone ranks at 0.90, mine at 0.80: try cagsr calibrate"
    assert hint(found, "c") is None
    assert hint(found | {"length": by_checker(ranked(0.99))}, "c") is None
    weak = {"mine": by_checker(ranked(0.5)), "b": by_checker(ranked(0.65))}
    assert hint(weak, "mine") is None


def test_where_all_are_refused_nothing_else_is_advised():
    found = {"mine": by_checker(ranked(auc=0.4)), "b": by_checker(ranked(auc=0.5))}
    assert advised({name: judge_reward(one) for name, one in found.items()}, found, "mine") == "mine"


def test_without_any_truth_the_configured_reward_is_kept_and_nothing_is_hinted():
    found = {name: Found() for name in ("mine", *SIGNALS)}
    assert advised({name: judge_reward(one) for name, one in found.items()}, found, "mine") == "mine"
    assert hint(found, "mine") is None
