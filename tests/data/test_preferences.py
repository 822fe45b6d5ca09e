"""Pairs of people are read or refused by name; pairs of nobody are worse in one way."""

import csv
import json
from collections import Counter
from random import Random

import pytest

import tiny
from cagsr.data.preferences import (
    _clauses,
    _doubled,
    _dropped,
    _mixed,
    _swapped,
    best_against_worst,
    degraded,
    read_pairs,
)
from cagsr.errors import InputError
from evidence import make_prompt

TOKENIZER = tiny.policy("llama").tokenizer
ANSWER = "the item is red , is made of wood and serves cooks . it also is cheap ."
OTHER = "our piece is tiny , hails from rome ."


def written(tmp_path, *rows) -> str:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


GOOD = {"prompt": "describe city : riga", "chosen": "it is riga", "rejected": "it is rome"}


def test_each_row_is_a_pair(tmp_path):
    pairs, report = read_pairs(written(tmp_path, GOOD, GOOD | {"chosen": "riga"}), TOKENIZER)
    assert [(p.prompt.text, p.chosen, p.rejected) for p in pairs] == [
        ("describe city : riga", "it is riga", "it is rome"),
        ("describe city : riga", "riga", "it is rome"),
    ]
    assert (report.rows, report.used) == (2, 2)


def test_csv_is_read_too_and_leaves_room_for_others_tables(tmp_path):
    limit = csv.field_size_limit()
    path = tmp_path / "pairs.csv"
    path.write_text("prompt,chosen,rejected\ndescribe city : riga,riga,rome\n")
    ((pair,), _) = read_pairs(str(path), TOKENIZER)
    assert (pair.chosen, pair.rejected) == ("riga", "rome")
    assert csv.field_size_limit() >= limit


def test_conversations_are_read_with_their_prompt_apart_or_at_the_head_of_both(tmp_path):
    asked = [{"role": "user", "content": "describe city : riga"}]
    replies = [[{"role": "assistant", "content": text}] for text in ("riga", "rome")]
    apart = {"prompt": asked, "chosen": replies[0], "rejected": replies[1]}
    implicit = {"chosen": asked + replies[0], "rejected": asked + replies[1]}
    tokenizer = tiny._tokenizer("causal").__class__(
        tokenizer_object=tiny._tokenizer("causal").backend_tokenizer
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %} :"
    for row in (apart, implicit):
        ((pair,), _) = read_pairs(written(tmp_path, row), tokenizer)
        assert (pair.prompt.text, pair.chosen, pair.rejected) == ("describe city : riga :", "riga", "rome")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (GOOD | {"chosen": 3}, "row 2: chosen must be text, got int"),
        (GOOD | {"rejected": " "}, "row 2: rejected is empty"),
        (GOOD | {"rejected": "it is riga"}, "row 2: chosen and rejected are the same text"),
        (GOOD | {"chosen": [{"content": "a"}, {"content": "b"}]}, "row 2: chosen must be one assistant turn"),
        ({"chosen": "a", "rejected": "b"}, "row 2: no 'prompt'"),
    ],
)
def test_a_bad_row_is_named_or_counted_never_lost(tmp_path, row, problem):
    path = written(tmp_path, GOOD, row)
    with pytest.raises(InputError, match=problem):
        read_pairs(path, TOKENIZER)
    pairs, report = read_pairs(path, TOKENIZER, skip_invalid=True)
    assert len(pairs) == 1
    assert len(report.invalid) == 1


def test_a_missing_column_is_named_with_the_nearest(tmp_path):
    path = written(tmp_path, {"prompt": "a", "chosen": "b", "reject": "c"})
    with pytest.raises(InputError, match="no 'rejected' column; did you mean 'reject'"):
        read_pairs(path, TOKENIZER)


def test_clauses_keep_what_joins_them_and_the_closing_apart():
    clauses, closing = _clauses(ANSWER)
    assert clauses == ["the item is red", " , is made of wood", " and serves cooks", " . it also is cheap"]
    assert closing == " ."
    assert _clauses("One, two. ") == (["One", ", two"], ". ")
    assert _clauses("") == ([""], "")


def test_each_way_does_what_it_says():
    clauses, _ = _clauses(ANSWER)
    for seed in range(30):
        random = Random(seed)
        dropped = _dropped("", clauses, OTHER, random)
        assert len(dropped) == 3
        assert Counter(clauses) - Counter(dropped) <= Counter(clauses[1:])
        doubled = _doubled("", clauses, OTHER, random)
        (again,) = (Counter(doubled) - Counter(clauses)).elements()
        assert again in clauses[1:]
        mixed = _mixed("", clauses, OTHER, random)
        assert list((Counter(mixed) - Counter(clauses)).elements()) == [" , hails from rome"]
        swapped = "".join(_swapped("describe wood", clauses, OTHER, random)).split()
        assert "wood" not in swapped
        assert set(swapped) & {"our", "piece", "tiny", "hails", "from", "rome"}


def test_a_pair_is_the_answer_and_one_text_made_worse_in_every_way_in_turn():
    made = [degraded("describe wood", ANSWER, [ANSWER, OTHER], Random(seed)) for seed in range(200)]
    assert {chosen for chosen, _ in made} == {ANSWER}
    assert all(rejected != ANSWER and rejected.endswith(" .") for _, rejected in made)
    clauses = len(_clauses(ANSWER)[0])
    ways = Counter(len(_clauses(rejected)[0]) - clauses for _, rejected in made)
    assert ways[-1] > 30  # dropped, and swaps that took a joining word along
    assert ways[1] > 60  # doubled or mixed
    assert ways[0] > 10  # swapped
    assert degraded("describe wood", ANSWER, [OTHER], Random(5)) == degraded(
        "describe wood", ANSWER, [OTHER], Random(5)
    )


def test_what_cannot_be_made_worse_stays_as_it_is():
    assert degraded("a", "", ["", ""], Random(0)) == ("", "")
    chosen, rejected = degraded("a", "word", ["word"], Random(0))
    assert (chosen, rejected) == ("word", "word, word")


def test_the_judges_best_is_paired_with_its_worst():
    def judge(prompt, candidates):
        return [float(len(text)) for text in candidates]

    prompt = make_prompt("a")
    pair = best_against_worst(prompt, ["bb", "c", "ddd", "e", "fff"], judge)
    assert pair is not None
    assert (pair.chosen, pair.rejected) == ("ddd", "c")
    assert best_against_worst(prompt, ["aa", "bb"], judge) is None
    with pytest.raises(ValueError, match="1 scores for 2"):
        best_against_worst(prompt, ["a", "b"], lambda prompt, candidates: [0.0])
