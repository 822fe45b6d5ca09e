import pytest

from cagsr.tasks.phrases import Phrases

PHRASES = Phrases(
    [
        ("red", ("colour", "red")),
        ("red brick", ("material", "brick")),
        ("as old as time", ("age", "old")),
    ]
)


def test_the_longer_of_two_phrases_counts_and_its_words_are_read_once():
    assert PHRASES.find("A red-brick house, red.") == [("material", "brick"), ("colour", "red")]


def test_a_phrase_is_found_by_whole_words_only():
    assert PHRASES.find("a hundred reds") == []


def test_an_unfinished_phrase_says_nothing():
    assert PHRASES.find("it is as old as") == []


def test_a_phrase_begins_again_after_a_false_start():
    assert PHRASES.find("as old as old as time") == [("age", "old")]


def test_a_phrase_with_two_meanings_is_refused():
    with pytest.raises(ValueError, match="'Red' says both"):
        Phrases([("red", ("colour", "red")), ("Red", ("mood", "angry"))])
