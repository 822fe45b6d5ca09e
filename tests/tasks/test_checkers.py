"""Counts on responses written by hand."""

import pytest

from cagsr.tasks import TASKS
from cagsr.tasks.task import Check, count

PRODUCT = {"slots": [["colour", "red"], ["size", "tiny"], ["origin", "japan"], ["price", "cheap"]]}
EVENT = {"slots": [["artist", "alba"], ["city", "porto"], ["day", "monday"]]}
NOTE = {"slots": [["thing", "lamp"], ["thing", "river"], ["thing", "kettle"], ["tone", "sad"]]}
QUESTION = {"slots": [["anna home", "rome"], ["ben pet", "cat"]]}


def test_the_rates_of_a_check_are_counts_over_slots():
    check = Check(slots=5, missing=2, hallucinated=1, repeated=1)
    assert check.slot_error_rate == pytest.approx(0.8)
    assert check.quality == pytest.approx(0.2)
    assert Check(slots=5, missing=5, hallucinated=2, repeated=0).quality == 0


def test_an_invention_counts_once_and_its_repetition_as_repetition():
    check = count([("a", "1"), ("b", "2")], [("a", "1"), ("a", "3"), ("a", "3"), ("c", "4")])
    # The second value of "a" stands beside the right one, and nobody asked for "c".
    assert check == Check(slots=2, missing=1, hallucinated=2, repeated=1, contradicted=0)
    assert count([("a", "1"), ("b", "2")], [("a", "1"), ("b", "3"), ("b", "4")]).contradicted == 2


@pytest.mark.parametrize(
    ("task", "row", "response", "missing", "hallucinated", "repeated", "contradicted"),
    [
        ("slots-paraphrase", PRODUCT, "it looks scarlet and stands thumb long .", 2, 0, 0, 0),
        ("slots-paraphrase", PRODUCT, "it looks scarlet , gleams like ripe cherries .", 3, 0, 1, 0),
        ("slots-paraphrase", PRODUCT, "it looks navy .", 4, 1, 0, 1),
        ("slots-paraphrase", PRODUCT, "It suits kids, looks scarlet, hails from Tokyo.", 2, 1, 0, 0),
        (
            "slots-paraphrase",
            PRODUCT,
            "colour : red ; size : tiny ; origin : japan ; price : cheap",
            4,
            0,
            0,
            0,
        ),
        ("slots-paraphrase", PRODUCT, "looks looks looks looks", 4, 0, 0, 0),
        ("slots", EVENT, "the show features alba and comes to porto on monday", 0, 0, 0, 0),
        ("slots", EVENT, "the show features alba alba alba and serves tea", 2, 1, 2, 0),
        ("keywords", NOTE, "i write in tears . bring your lamp . my old river needs care .", 1, 0, 0, 0),
        ("keywords", NOTE, "hurry up ! bring your lamp , lamp and piano .", 3, 2, 1, 1),
        ("qa", QUESTION, "anna lives in rome .", 1, 0, 0, 0),
        ("qa", QUESTION, "Ben keeps a cat, and Anna lives in Rome.", 0, 0, 0, 0),
        ("qa", QUESTION, "anna lives in oslo and ben keeps a cat .", 1, 1, 0, 1),
        ("qa", QUESTION, "anna lives in rome and anna lives in rome .", 1, 0, 1, 0),
        ("qa", QUESTION, "rome cat", 2, 0, 0, 0),
    ],
)
def test_a_response_is_counted_as_by_hand(task, row, response, missing, hallucinated, repeated, contradicted):
    check = TASKS[task].check(row, response)
    assert check == Check(len(row["slots"]), missing, hallucinated, repeated, contradicted)


@pytest.mark.parametrize("name", ["slots", "slots-paraphrase"])
def test_every_realisation_of_every_value_says_that_value_and_no_other(name):
    task = TASKS[name]
    for field, grammar in task.fields.items():
        for value, realisations in grammar.values.items():
            for phrase in realisations:
                for frame in grammar.frames:
                    sentence = f"{task.subjects[0]} {frame.format(phrase)} and"
                    assert task.phrases.find(sentence) == [(field, value)], sentence


def test_every_fact_of_a_context_is_read_and_two_of_them_are_asked():
    task = TASKS["qa"]
    for row in task.rows("train", 200):
        facts = [tuple(fact) for fact in row["facts"]]
        assert task.phrases.find(row["prompt"].rsplit(" . ", 1)[0]) == facts
        assert {tuple(slot) for slot in row["slots"]} < set(facts)
