"""Rewards against responses that only look good. The evidence is what an observer gives for such text."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from cagsr.config.schema import Term
from cagsr.rewards.presets import load_preset
from cagsr.rewards.reward import Reward
from cagsr.rewards.salience import Uniform
from cagsr.types import EVERYTHING, Evidence, Observation, Rollout, Wanted
from evidence import EOS, make_evidence, make_prompt

PROMPT = make_prompt("name | Zizzi ; food | Thai ; area | riverside")
WORDS = {PROMPT.text[a:b]: column for column, (a, b) in enumerate(PROMPT.offsets[:-1])}
SEPARATOR, SINK = WORDS["|"], len(PROMPT.ids) - 1
ZIZZI, THAI, RIVERSIDE = WORDS["Zizzi"], WORDS["Thai"], WORDS["riverside"]

EXPECTED, SURPRISING = -0.2, -6.0
LOST = 6.0  # nats that a token loses where what it looks at is taken away


@dataclass
class Candidate:
    """A response by what each token looks at (a prompt column), and how likely the observer finds it."""

    looks: list[int]
    ids: list[int]
    logprob: float = EXPECTED
    ended: bool = True
    text: str = ""


GOOD = Candidate(
    [ZIZZI, SINK, THAI, SINK, RIVERSIDE], [50, 51, 52, 53, 54], text="Zizzi serves Thai riverside"
)
ADVERSARIES = {
    "the prompt copied": Candidate(
        list(range(len(PROMPT.ids) - 1)), list(PROMPT.ids[:-1]), SURPRISING, text=PROMPT.text
    ),
    "one token": Candidate([ZIZZI], [50], text="Zizzi"),
    "one token repeated": Candidate([ZIZZI] * 11, [50] * 11, text="Zizzi " * 11),
    "one clause repeated": Candidate(
        [ZIZZI, SINK, THAI] * 4, [50, 51, 52] * 4, text="Zizzi serves Thai " * 4
    ),
    "one clause repeated without end": Candidate(
        [ZIZZI, SINK, THAI] * 4, [50, 51, 52] * 4, ended=False, text="Zizzi serves Thai " * 4
    ),
    "all of it repeated": Candidate(GOOD.looks * 3, GOOD.ids * 3, text=f"{GOOD.text} " * 3),
    "ever longer text": Candidate(
        GOOD.looks + [SINK] * 8, GOOD.ids + list(range(60, 68)), ended=False, text=GOOD.text + " and so on"
    ),
    "empty output": Candidate([], [], SURPRISING),
    "empty output that was expected": Candidate([], []),
    "no token at all": Candidate([], [], ended=False),
    "text for another prompt": Candidate(
        [SINK] * 5, [70, 71, 72, 73, 74], SURPRISING, text="Aromi has chips"
    ),
    "fluent text for another prompt": Candidate([SINK] * 5, [70, 71, 72, 73, 74], text="Aromi has chips"),
    "separators only": Candidate([SEPARATOR] * 7, [PROMPT.ids[SEPARATOR]] * 7, text="| " * 7),
    "distinct separators": Candidate([SEPARATOR, WORDS[";"]], [80, 81], text="| ;"),
}

REWARDS = {
    "robust": load_preset("robust"),
    "coverage": load_preset("coverage"),
    "gated coverage, standardised": [
        Term("coverage", options={"gate": True}),
        Term("repetition", weight=0.5),
        Term("unfinished", weight=0.5),
        Term("surprise", weight=0.2),
    ],
    "coverage as noisy or": [
        Term("coverage", weight=4.0, standardise="none", options={"saturation": "noisy_or"}),
        Term("surprise", weight=1.0, standardise="none"),
        Term("repetition", weight=2.0, standardise="none"),
        Term("unfinished", weight=0.5, standardise="none"),
    ],
}


@dataclass
class Blindable:
    """An observer that finds a token less likely without the prompt token that it looks at."""

    logprobs_NT: Tensor
    looks: list[list[int]]

    def observe(self, rollout: Rollout, wanted: Wanted = EVERYTHING) -> Observation:
        raise AssertionError("a knockout needs log-probabilities only")

    def logprobs(self, rollout: Rollout) -> Tensor:
        found = self.logprobs_NT.clone()
        for row, looks in enumerate(self.looks):
            for step, column in enumerate(looks):
                if not rollout.prompt_mask[0, column]:
                    found[row, step] -= LOST
        return found


def observed(*candidates: Candidate) -> Evidence:
    """Each token sends .6 of its attention where it looks and .1 to the sink; the rest goes to the response."""
    T = max(len(candidate.ids) for candidate in candidates) + 1
    attention = torch.zeros(len(candidates), T, len(PROMPT.ids))
    ids = torch.zeros(len(candidates), T, dtype=torch.long)
    logprobs = torch.zeros(len(candidates), T)
    lengths = []
    for row, candidate in enumerate(candidates):
        looks = candidate.looks + [SINK] * candidate.ended
        written = candidate.ids + [EOS] * candidate.ended
        for step, column in enumerate(looks):
            attention[row, step, column] += 0.6
            attention[row, step, SINK] += 0.1
        ids[row, : len(written)] = torch.tensor(written, dtype=torch.long)
        logprobs[row, : len(written)] = candidate.logprob
        lengths.append(len(written))
    evidence = make_evidence(
        attention,
        response_ids=ids,
        lengths=lengths,
        finished=[candidate.ended for candidate in candidates],
        responses=[candidate.text for candidate in candidates],
        prompts=[PROMPT],
        prompt_ids=[PROMPT.ids],
        logprobs=logprobs,
        confidence=logprobs.exp(),
    )
    observer = Blindable(evidence.observation.logprobs, [candidate.looks for candidate in candidates])
    return Evidence(evidence.rollout, evidence.observation, Uniform()(evidence.rollout), observer)


def rewards(terms: list[Term], *candidates: Candidate) -> list[float]:
    reward = Reward(terms)
    return reward.combine(reward.measure(observed(*candidates)), len(candidates)).tolist()


@pytest.mark.parametrize("adversary", ADVERSARIES)
@pytest.mark.parametrize("reward", REWARDS)
def test_trap_23_no_adversary_is_worth_what_a_good_response_is(reward, adversary):
    _, good, bad = rewards(
        REWARDS[reward], Candidate([THAI], [52], text="Thai"), GOOD, ADVERSARIES[adversary]
    )
    assert good > bad + 0.05


@pytest.mark.parametrize("reward", REWARDS)
def test_trap_23_a_good_response_beats_all_adversaries_at_once(reward):
    good, *bad = rewards(REWARDS[reward], GOOD, *ADVERSARIES.values())
    assert good > max(bad)


@pytest.mark.parametrize("reward", ["robust", "coverage", "gated coverage, standardised"])
def test_trap_23_longer_text_that_ends_and_is_fluent_gains_nothing(reward):
    longer = Candidate(GOOD.looks + [SINK] * 8, GOOD.ids + list(range(60, 68)), text=GOOD.text)
    good, padded, _ = rewards(REWARDS[reward], GOOD, longer, ADVERSARIES["one token"])
    assert padded <= good + 1e-6


# Why these three are no default; and that these adversaries can tell a bad reward from a good one.


def test_trap_23_the_literal_paper_sum_loves_one_short_clause():
    good, short = rewards(load_preset("paper"), GOOD, ADVERSARIES["one token"])
    assert short > good


def test_trap_23_accumulated_coverage_without_a_price_for_repetition_loves_repetition():
    accumulated = [
        Term("coverage", weight=1.0, standardise="none", options={"saturation": "capped_sum", "cap": 100.0})
    ]
    good, repeated = rewards(accumulated, GOOD, ADVERSARIES["all of it repeated"])
    assert repeated > good


def test_trap_23_the_lexical_control_loves_the_prompt_copied():
    good, copied = rewards(load_preset("lexical"), GOOD, ADVERSARIES["the prompt copied"])
    assert copied > good


def test_trap_23_an_empty_output_covers_nothing_though_its_end_looks_at_the_prompt():
    evidence = observed(Candidate([], []), GOOD)
    evidence.observation.attention[0, 0] = 1 / len(PROMPT.ids)
    assert Reward([Term("coverage")]).measure(evidence)[0].item() == 0.0


def test_trap_25_the_same_responses_to_shuffled_prompts_are_worth_less():
    """What the collapse watch compares: what covers this prompt does not cover another."""
    mine = observed(GOOD)
    elsewhere = observed(ADVERSARIES["text for another prompt"])
    robust = Reward(load_preset("robust"))
    values = robust.combine(torch.cat([robust.measure(mine), robust.measure(elsewhere)]), 2)
    assert values[0] > values[1] + 1
