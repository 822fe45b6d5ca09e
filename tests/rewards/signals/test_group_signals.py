"""Agreement with the group, likeness to references and lots, against values computed by hand."""

import time
from random import Random

import pytest
import torch

from cagsr.errors import InputError
from cagsr.metrics.common_subsequence import rouge_l
from cagsr.rewards.signals import SIGNALS
from evidence import make_evidence, make_prompt

agreement, random_reward = SIGNALS["agreement"], SIGNALS["random_reward"]
reference_overlap = SIGNALS["reference_overlap"]


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence():
    # "the cat sat" in "the dog and the cat then sat down": 3 of 3 and 3 of 8
    found = rouge_l(["the", "dog", "and", "the", "cat", "then", "sat", "down"], ["the", "cat", "sat"])
    assert found == pytest.approx(2 * 3 / 11)
    assert rouge_l("abcde", "edcba") == pytest.approx(1 / 5)
    assert rouge_l("abc", "abc") == 1.0
    assert rouge_l("abc", "xyz") == rouge_l("", "abc") == rouge_l("abc", "") == 0.0


def test_rouge_l_equals_the_table_of_the_definition():
    random = Random(0)
    for _ in range(200):
        a, b = ([random.randrange(4) for _ in range(random.randrange(1, 90))] for _ in range(2))
        row = [0] * (len(b) + 1)
        for x in a:
            above = row[:]
            for j, y in enumerate(b, start=1):
                row[j] = above[j - 1] + 1 if x == y else max(above[j], row[j - 1])
        assert rouge_l(a, b) == pytest.approx(2 * row[-1] / (len(a) + len(b)))


def test_agreement_is_the_mean_likeness_to_the_other_candidates():
    ids = [[5, 6, 7, 8, 9], [5, 6, 7, 1, 0], [8, 9, 1, 0, 0]] + [[5, 6, 7, 8, 9]] * 3
    evidence = make_evidence(
        torch.zeros(6, 5, 3),
        group_size=3,
        response_ids=ids,
        lengths=[5, 4, 3, 5, 5, 5],
        finished=[False, True, True, False, False, False],
    )
    # Without the end: 567 in 56789 is 2*3/8, 89 in 56789 is 2*2/7, 567 and 89 share nothing.
    a, b = 6 / 8, 4 / 7
    assert agreement(evidence).tolist() == pytest.approx([(a + b) / 2, a / 2, b / 2, 1.0, 1.0, 1.0])


def test_a_group_of_one_agrees_with_nobody():
    assert agreement(make_evidence(torch.zeros(3, 5, 2), group_size=1)).tolist() == [0.0, 0.0, 0.0]


def lots(responses, *, index=0, occurrence=0, **options):
    prompt = make_prompt("a b", index=index)
    object.__setattr__(prompt, "occurrence", occurrence)
    evidence = make_evidence(torch.zeros(len(responses), 2, 3), prompts=[prompt], responses=responses)
    return random_reward(evidence, **options).tolist()


def test_luck_belongs_to_the_text_the_prompt_and_the_seed():
    first, second = lots(["x", "y"])
    assert lots(["y", "x", "y"]) == [second, first, second]
    others = [
        first, second, *lots(["x"], index=1), *lots(["x"], occurrence=1), *lots(["x"], seed=1)
    ]  # fmt: skip
    assert len(set(others)) == 5


def test_luck_is_uniform():
    values = torch.tensor(lots([f"text {n}" for n in range(3000)]))
    assert values.min() >= 0
    assert values.max() < 1
    # Four standard errors of 1 / sqrt(12 * 3000) and of the share below a quarter.
    assert float(values.mean()) == pytest.approx(0.5, abs=4 / (12 * 3000) ** 0.5)
    assert float((values < 0.25).float().mean()) == pytest.approx(0.25, abs=4 * (0.1875 / 3000) ** 0.5)


def overlap(row, *responses):
    prompt = make_prompt("a b", index=7, row=row)
    return reference_overlap(
        make_evidence(torch.zeros(len(responses), 2, 3), prompts=[prompt], responses=responses)
    ).tolist()


def test_reference_overlap_takes_the_nearest_reference():
    assert overlap({"reference": "The cat sat."}, "the cat", "THE CAT SAT", "", "!") == pytest.approx(
        [0.8, 1, 0, 0]
    )
    both = {"reference": "unused", "references": ["a dog ran", "the cat sat"]}
    assert overlap(both, "a dog", "the cat sat down", "unused") == pytest.approx([0.8, 6 / 7, 0.0])


@pytest.mark.parametrize(
    ("row", "has"),
    [
        ({}, "none"),
        ({"reference": None}, "none"),
        ({"references": []}, "none"),
        ({"references": [3]}, r"no text as that, but \[3\]"),
        ({"reference": 0}, "no text as that, but 0"),
    ],
)
def test_a_row_without_a_reference_is_named(row, has):
    with pytest.raises(InputError, match=rf"the row of prompt index 7 has {has}\."):
        overlap(row, "a")


def test_on_plain_english_reference_overlap_is_what_the_rouge_package_says():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=False)
    random, words = Random(1), ["The", "cat", "sat", "on", "3", "mats,", "while", "a", "dog", "ran", "home."]
    for _ in range(50):
        response, reference = (" ".join(random.choices(words, k=random.randrange(1, 20))) for _ in range(2))
        expected = scorer.score(reference, response)["rougeL"].fmeasure
        assert overlap({"reference": reference}, response) == pytest.approx([expected])


def test_a_step_of_sixty_four_responses_of_fifty_tokens_is_quick():
    ids = torch.randint(2, 100, (64, 50), generator=torch.Generator().manual_seed(0))
    evidence = make_evidence(torch.zeros(64, 50, 3), group_size=8, response_ids=ids)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        agreement(evidence)
        times.append(time.perf_counter() - started)
    # 5 ms on an idle core; the table of the definition takes 150.
    assert min(times) < 0.06
