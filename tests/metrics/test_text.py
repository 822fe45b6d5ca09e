"""Exact match, distinct n-grams, words: by hand."""

import pytest

from cagsr.metrics.text import distinct, exact_match, normalised, word_count


def test_articles_case_punctuation_and_width_are_no_difference():
    assert normalised("The  ﬁrst,\nan Answer. Straße!") == "first answer strasse"
    assert exact_match("the Eiffel-Tower!", ["a tower", "Eiffeltower"]) == 1
    assert exact_match("the tower", ["a towers"]) == 0
    assert exact_match("anthem", ["them"]) == 0  # an article is a word of its own
    assert exact_match("tower", []) == 0


def test_punctuation_of_other_scripts_goes_too():
    assert exact_match("是的。", ["是的"]) == 1
    assert exact_match("«oui»", ["oui"]) == 1


def test_distinct_bigrams_of_a_response():
    assert distinct("x y x y x") == 2 / 4  # xy yx xy yx
    assert distinct("x y z") == 1
    assert distinct("x") == 1
    assert distinct("x X x", n=1) == 1 / 3


@pytest.mark.parametrize(("text", "words"), [("", 0), ("  a  b\nc-d ", 3)])
def test_words_stand_between_white_space(text, words):
    assert word_count(text) == words
