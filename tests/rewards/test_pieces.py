"""Pieces: what people write is divided where a person would divide it, and what a data set shares is no piece."""

import json
import signal
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from cagsr.rewards.pieces import Common, Span, pieces

LAYOUTS = Path(__file__).with_name("layouts.jsonl")
"""140 prompts whose pieces were drawn by hand, by rules written before and without a look at the program.

The program was made with the first table (60), mended after the second (40: F1 .835 when first seen) and after the
third (40: .891 when first seen).
"""


@cache
def layouts() -> list[dict]:
    return [json.loads(line) for line in LAYOUTS.read_text(encoding="utf-8").splitlines()]


@contextmanager
def limited(seconds: int):
    """Context manager whose block fails when it takes longer: a guard against quadratic time, not a benchmark."""

    def over(number, frame):
        raise TimeoutError(f"after {seconds} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def found(text: str, *siblings: str) -> list[str]:
    return [
        text[start:stop] for start, stop in pieces(text, common=Common([text, *siblings] if siblings else []))
    ]


def drawn(row: dict) -> list[Span]:
    spans, position = [], 0
    for piece in row["pieces"]:
        start = row["prompt"].index(piece, position)
        position = start + len(piece)
        spans.append((start, position))
    return spans


@pytest.mark.parametrize(
    ("table", "count", "least"), [("first", 60, 0.93), ("second", 40, 0.91), ("third", 40, 0.92)]
)
def test_boundaries_are_those_that_a_person_drew(table: str, count: int, least: float):
    right = ours = theirs = 0
    rows = [row for row in layouts() if row["table"] == table]
    for row in rows:
        common = Common([row["prompt"], *row["siblings"]] if row["siblings"] else [])
        spans, expected = pieces(row["prompt"], common=common), drawn(row)
        for side in (0, 1):
            both = {span[side] for span in spans}, {span[side] for span in expected}
            right, ours, theirs = right + len(both[0] & both[1]), ours + len(both[0]), theirs + len(both[1])
    assert len(rows) == count
    assert 2 * right / (ours + theirs) >= least


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: X Y\neatType: pub\nnear: The Bakers", ["name: X Y", "eatType: pub", "near: The Bakers"]),
        (
            "- call the dentist\n- water the plants\n* 3.2 billion",
            ["call the dentist", "water the plants", "3.2 billion"],
        ),
        ("1. in the city centre\n2) not family-friendly", ["in the city centre", "not family-friendly"]),
        ("name[The Mill], area[riverside]", ["name[The Mill]", "area[riverside]"]),
        ("inform(a=One Two, b=3.5)", ["a=One Two", "b=3.5"]),
        ('{"a": "b c", "d": {"e": [1, 2]}}', ['"a": "b c"', '"e": [1, 2]']),
        ("| h | k |\n|---|---|\n| a | 1 |\n| b | 2 |", ["a | 1", "b | 2"]),
        (
            "It opens at 9 a.m. on Monday, but it is closed in May.",
            ["It opens at 9 a.m. on Monday", "it is closed in May"],
        ),
        (
            "Dogs, scooters and large bags are not allowed.",
            ["Dogs", "scooters", "large bags are not allowed"],
        ),
        (
            "The rating is 3 out of 5. The area is quiet. Am 5. Oktober ist zu. It costs 12. It is late.",
            [
                "The rating is 3 out of 5",
                "The area is quiet",
                "Am 5. Oktober ist zu",
                "It costs 12",
                "It is late",
            ],
        ),
        (
            '{"to": "Ada", "say": ["ask for an answer", "be kind"]}',
            ['"to": "Ada"', '"ask for an answer"', '"be kind"'],
        ),
        ('{"tags": ["red", "dark green"], "n": 2}', ['"tags": ["red", "dark green"]', '"n": 2']),
        ("salt and pepper", ["salt and pepper"]),
        ("no dogs", ["no dogs"]),
        ("रंग: हरा\nदाम: 2,500 रुपये", ["रंग: हरा", "दाम: 2,500 रुपये"]),
        ("", []),
        (" \n -- \n", []),
        ("one thing", ["one thing"]),
    ],
)
def test_what_people_write_is_divided(text: str, expected: list[str]):
    assert found(text) == expected


def test_what_all_prompts_of_a_data_set_say_is_no_piece_and_a_field_keeps_its_name():
    head = "Describe the place. Mention every fact.\n"
    texts = [
        head + f"name: {name}\narea: {area}"
        for name, area in (("A B", "north"), ("C", "south"), ("D", "west"))
    ]
    assert found(*texts) == ["name: A B", "area: north"]
    assert found(texts[0]) == ["Describe the place", "Mention every fact", "name: A B", "area: north"]


def test_a_run_of_words_that_all_prompts_share_is_cut_out_of_a_sentence():
    texts = [
        f"Write a poem about {what} in three lines." for what in ("a lighthouse", "the sea", "my old dog")
    ]
    assert found(*texts) == ["a lighthouse"]


def test_pieces_lie_within_the_content_in_order_and_apart():
    text = "user: a: b; c: d end"
    assert [text[start:stop] for start, stop in pieces(text, [(6, 16)])] == ["a: b", "c: d"]
    for row in layouts():
        spans = pieces(row["prompt"])
        assert all(start < stop for start, stop in spans)
        assert all(before[1] <= after[0] for before, after in pairwise(spans))


def test_the_same_prompt_again_says_nothing_of_what_a_data_set_has_in_common():
    text = "Describe it.\nname: A B\narea: north"
    assert found(text, text, text) == found(text) == ["Describe it", "name: A B", "area: north"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            'Given {"name": "Anna"} write a short bio and do not mention her age [optional].',
            ["Given", '"name": "Anna"', "write a short bio", "do not mention her age [optional]"],
        ),
        (
            '{"city": "Rome"} Write a poem about this city. {"format": "text"}',
            ['"city": "Rome"', "Write a poem about this city", '"format": "text"'],
        ),
        ('{"say": "\\"hi\\" now", "n": 2}', ['"say": "\\"hi\\" now"', '"n": 2']),
        ("Best hotels in Rome", ["Best hotels in Rome"]),
        ("- Hello Kitty cup\n- OK magazine", ["Hello Kitty cup", "OK magazine"]),
        ("Hello", ["Hello"]),
        ("Write a recipe.\nNo:\n- meat\n- dairy", ["Write a recipe", "No", "meat", "dairy"]),
        ("Dear team, we move on Monday.\nKind regards, Helen", ["we move on Monday"]),
    ],
)
def test_nothing_that_changes_an_answer_is_lost(text: str, expected: list[str]):
    assert found(text) == expected


@pytest.mark.parametrize(
    "text",
    ["a" + " " * 20_000 + "b", "{" * 20_000, "[" * 20_000, '{"' * 10_000, "A. " * 7_000, "1. " * 7_000],
)
def test_long_and_odd_texts_are_divided_in_time(text: str):
    with limited(seconds=5):
        spans = pieces(text)
    assert bool(spans) == any(letter.isalnum() for letter in text)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


def test_thanks_is_a_courtesy_by_itself_and_a_keyword_in_a_list():
    assert found("Write a note. Mention: the cake, Sunday, thanks") == [
        "Write a note",
        "Mention: the cake",
        "Sunday",
        "thanks",
    ]
    assert found("Write a note about the cake. Thanks!") == ["Write a note about the cake"]
