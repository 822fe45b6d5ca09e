"""ROUGE-L: by hand, the best of several references."""

import sys

import pytest

from cagsr.errors import InputError
from cagsr.metrics.rouge import rouge_l


@pytest.fixture(scope="module")
def measure():
    return rouge_l()


def test_f1_of_the_longest_common_subsequence(measure):
    # lcs "red on the mat" of 5 response and 7 reference words
    assert measure("red cat on the mat", ["the red dog sat on the mat"]) == pytest.approx(
        2 * (4 / 5) * (4 / 7) / (4 / 5 + 4 / 7)
    )
    assert measure("a b c d", ["d c b a"]) == pytest.approx(1 / 4)


def test_the_nearest_reference_counts(measure):
    assert measure("one two three", ["four", "one two three", "one"]) == 1
    assert measure("one", ["two", "one three"]) == pytest.approx(2 / 3)


def test_endings_are_stemmed_and_case_and_punctuation_are_nothing(measure):
    assert measure("Serving dishes!", ["serve dish"]) == 1
    assert measure("", ["serve"]) == 0


def test_no_reference_is_an_error_and_no_zero(measure):
    with pytest.raises(ValueError, match="no reference"):
        measure("one", [])


def test_a_missing_package_is_named_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(InputError, match=r"pip install rouge-score, or set metrics\.rouge to false"):
        rouge_l()
