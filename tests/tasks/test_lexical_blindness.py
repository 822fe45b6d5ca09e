"""On ``slots-paraphrase`` word overlap must not rank responses, on ``slots`` it must."""

from itertools import combinations, pairwise
from random import Random

import numpy as np

from cagsr.tasks import TASKS
from cagsr.tasks.phrases import words

PARAPHRASE = TASKS["slots-paraphrase"]


def overlap(prompt: str, response: str) -> float:
    asked = set(words(prompt))
    return len(asked & set(words(response))) / len(asked)


def ranking_auc(task) -> float:
    """How often overlap prefers the better of two responses to one prompt; ties count one half."""
    random, wins = Random(0), []
    for row in task.rows("development", 100):
        slots = [tuple(slot) for slot in row["slots"]]
        texts = [task.write(random.sample(slots, said), random) for said in range(1, len(slots) + 1)]
        for worse, better in combinations(texts, 2):
            assert task.quality(row, better) > task.quality(row, worse)
            gap = overlap(row["prompt"], better) - overlap(row["prompt"], worse)
            wins.append(0.5 + 0.5 * np.sign(gap))
    return float(np.mean(wins))


def test_word_overlap_ranks_paraphrases_at_chance():
    assert ranking_auc(PARAPHRASE) == 0.5


def test_word_overlap_ranks_copies_almost_perfectly():
    assert ranking_auc(TASKS["slots"]) > 0.97


def test_no_word_of_a_prompt_can_occur_in_a_response():
    asked, said = {"describe"}, {*words(" ".join([*PARAPHRASE.subjects, *PARAPHRASE.pronouns])), "and"}
    for field, grammar in PARAPHRASE.fields.items():
        asked |= {field, *words(" ".join(grammar.values))}
        for text in (*grammar.frames, *(p for realisations in grammar.values.values() for p in realisations)):
            said |= set(words(text))
    assert asked.isdisjoint(said)


def test_no_realisation_is_part_of_another_or_of_a_frame():
    phrases = [
        phrase
        for grammar in PARAPHRASE.fields.values()
        for realisations in grammar.values.values()
        for phrase in realisations
    ]
    frames = [frame.format("") for grammar in PARAPHRASE.fields.values() for frame in grammar.frames]
    assert len(set(phrases)) == len(phrases)
    for part in phrases:
        for whole in [*phrases, *frames, *PARAPHRASE.subjects]:
            assert part == whole or f" {part} " not in f" {whole} ", (part, whole)


def test_every_value_has_several_realisations():
    for grammar in PARAPHRASE.fields.values():
        assert all(2 <= len(realisations) <= 4 for realisations in grammar.values.values())


def test_the_order_of_the_slots_in_a_reference_is_not_the_prompts():
    follows = []
    for row in PARAPHRASE.rows("train", 300):
        said = PARAPHRASE.phrases.find(row["reference"])
        places = [row["slots"].index(list(slot)) for slot in said]
        follows += [first < second for first, second in pairwise(places)]
    assert 0.45 < np.mean(follows) < 0.55
