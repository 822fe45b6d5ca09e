"""Texts made worse on purpose."""

from random import Random

import pytest

from cagsr.data.corruptions import (
    CONTRASTS,
    clauses,
    degraded,
    dropped,
    duplicated,
    inserted,
    replaced,
    swapped,
)

TEXT = "The Vaults is a pub near Bibo. It is cheap and serves chips, with a view."
PIECES = ["The Vaults is a pub near Bibo.", "It is cheap", "and serves chips,", "with a view."]
OTHER = "Zizzi is a cafe. It is cheap."
PROMPT, OTHER_PROMPT = "name : The Vaults ; food : chips", "name : Zizzi ; food : Thai"


def of(contrast, text=TEXT, seed=0, other=OTHER):
    return contrast(text, PROMPT, other, OTHER_PROMPT, Random(seed))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TEXT, PIECES),
        ("it is red . it , too , is cheap !", ["it is red .", "it ,", "too ,", "is cheap !"]),
        ("one two three four five six seven eight nine", ["one two three four", "five six seven eight nine"]),
        ("one two three", ["one two three"]),
        ("", []),
        (" . ", ["."]),
    ],
)
def test_clauses_joined_are_the_text(text, expected):
    assert clauses(text) == expected
    assert " ".join(clauses(text)) == " ".join(text.split())


def test_each_clause_may_be_the_one_dropped_and_the_end_stays():
    found = {of(dropped, seed=seed) for seed in range(40)}
    assert found == {
        "It is cheap and serves chips, with a view.",
        "The Vaults is a pub near Bibo. and serves chips, with a view.",
        "The Vaults is a pub near Bibo. It is cheap with a view.",
        "The Vaults is a pub near Bibo. It is cheap and serves chips.",
    }


def test_a_duplicated_clause_comes_again_later():
    for seed in range(20):
        found = of(duplicated, seed=seed)
        again = [piece for piece in PIECES if found.count(piece) == 2]
        assert len(again) == 1
        assert sorted(found.split()) == sorted(f"{TEXT} {again[0]}".split())
        assert found.startswith(PIECES[0])


def test_swapped_words_are_those_that_only_this_prompt_has():
    found = of(swapped)
    words = found.split()
    # "The", "Vaults" and "chips" stand in this prompt only, "Zizzi" and "Thai" in the other's.
    assert {words[0], words[1], words[-4].strip(",")} <= {"zizzi", "thai"}
    assert " ".join(words[2:-4]) == "is a pub near Bibo. It is cheap and serves"


def test_an_inserted_clause_is_new_and_never_first():
    for seed in range(20):
        found = of(inserted, seed=seed)
        assert found.startswith(PIECES[0])
        assert ("Zizzi is a cafe." in found) != ("It is cheap." in found)
    assert of(inserted, other="It is cheap and serves chips, ") is None


def test_a_replaced_response_is_the_other():
    assert of(replaced) == OTHER
    assert of(replaced, other=TEXT) is None


def test_a_degraded_text_is_worse_in_one_of_four_ways_and_begins_as_it_did():
    found = {of(degraded, seed=seed) for seed in range(1500)}
    one, two, three, four = PIECES
    omitted = {
        f"{one} {three} {four}",
        f"{one} {two} {four}",
        f"{one} {two} {three.strip(',')}.",
    }
    repeated = {
        " ".join([*PIECES[:where], PIECES[which], *PIECES[where:]])
        for which in range(4)
        for where in range(which + 1, 5)
    }
    invented = {
        " ".join([*PIECES[:where], new, *PIECES[where:]])
        for new in ("Zizzi is a cafe.", "It is cheap.")
        for where in range(1, 5)
    }
    wrong = {
        TEXT.replace("The", the).replace("Vaults", vaults).replace("chips", chips)
        for the in ("zizzi", "thai")
        for vaults in ("zizzi", "thai")
        for chips in ("zizzi", "thai")
    }
    assert found == omitted | repeated | invented | wrong
    assert len(found) == 3 + 10 + 8 + 8


def test_a_text_is_degraded_in_the_ways_that_apply_to_it():
    assert {of(degraded, text="word", seed=seed, other="") for seed in range(20)} == {"word word"}
    assert of(degraded, text=" . ") is None


@pytest.mark.parametrize(
    ("name", "text", "other"),
    [
        ("dropped", "one", OTHER),
        ("duplicated", "", OTHER),
        ("swapped", "nothing is copied", OTHER),
        ("inserted", TEXT, ""),
    ],
)
def test_what_cannot_be_made_worse_is_none(name, text, other):
    assert of(CONTRASTS[name], text=text, other=other) is None


@pytest.mark.parametrize("name", CONTRASTS)
def test_the_same_seed_makes_the_same_text(name):
    assert of(CONTRASTS[name], seed=3) == of(CONTRASTS[name], seed=3)
    assert of(CONTRASTS[name], seed=3) != TEXT
