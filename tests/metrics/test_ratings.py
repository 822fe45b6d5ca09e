"""Ratings of people: which response they are of, and rows that are none."""

import json
import math

import pytest

from cagsr.errors import InputError
from cagsr.metrics.ratings import read_ratings


def row(**changes):
    given = {"system": "base", "prompt": "p", "response": "r", "rater": "ann"}
    return given | {"relevance": 4, "coherence": 3, "overall": 5} | changes


@pytest.fixture
def ratings(tmp_path):
    def write(*rows):
        path = tmp_path / "ratings.jsonl"
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
        return read_ratings(path)

    return write


def test_the_mean_over_raters_and_how_many(ratings):
    found = ratings(row(), row(rater="bob", overall=2), row(system="other", overall=1))
    assert found.mean("base", "p", "r") == (3.5, 2)
    assert found.mean("base", "p", "r", "relevance") == (4.0, 2)
    assert found.mean("other", "p", "r") == (1.0, 1)


def test_a_raters_later_word_replaces_the_earlier(ratings):
    assert ratings(row(overall=1), "", row(overall=4)).mean("base", "p", "r") == (4.0, 1)


def test_a_rating_of_another_response_does_not_count_but_is_counted(ratings):
    found = ratings(row(response="old"), row(response="old", rater="bob"))
    mean, count = found.mean("base", "p", "new")
    assert math.isnan(mean)
    assert count == 0
    assert found.of_other_responses("base", "p", "new") == 2
    assert found.of_other_responses("base", "p", "old") == 0


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", "ratings.jsonl:2: not JSON"),
        ("[1]", "2: expected an object with system, prompt"),
        (row(overall=6), "2: 'overall' must be a whole number from 1 to 5, got 6"),
        (row(relevance=True), "2: 'relevance' must be"),
        (row(coherence=4.5), "2: 'coherence' must be"),
        (row(rater=None), "2: 'rater' must be text, got None"),
    ],
)
def test_a_row_that_is_no_rating_is_refused_by_its_line(ratings, bad, message):
    with pytest.raises(InputError, match=message):
        ratings(row(), bad)


def test_a_line_ends_where_a_text_editor_ends_it(ratings, tmp_path):
    text = json.dumps(row(response="a\u2028b\x85c"), ensure_ascii=False)
    (tmp_path / "r.jsonl").write_text(f"\ufeff{text}\r\n", encoding="utf-8", newline="")
    assert read_ratings(tmp_path / "r.jsonl").mean("base", "p", "a\u2028b\x85c") == (5.0, 1)
    with pytest.raises(InputError, match=r"ratings\.jsonl:2: not JSON"):
        ratings(row(), "[" * 100_000)


def test_a_file_without_ratings_is_refused(ratings, tmp_path):
    with pytest.raises(InputError, match="has no rating"):
        ratings("")
    with pytest.raises(InputError, match=r"metrics.ratings: .*none.jsonl cannot be read"):
        read_ratings(tmp_path / "none.jsonl")
