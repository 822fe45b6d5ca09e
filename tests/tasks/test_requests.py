"""The checker of ``requests`` on sentences as models write them, counted by hand."""

import json

import pytest

from cagsr.tasks import TASKS
from cagsr.tasks.requests import LAYOUTS, PARTS, REWORDED

REQUESTS = TASKS["requests"]
ALL = [
    ["day", "Tuesday"],
    ["place", "the harbour"],
    ["bring", "two chairs"],
    ["apology", "late"],
    ["cost", "free"],
    ["secret", "secret"],
]


def counted(response: str, slots: list[list[str]] = ALL) -> tuple[int, int, int]:
    check = REQUESTS.check({"slots": slots}, response)
    return check.missing, check.hallucinated, check.repeated


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (
            "Hi Ada! Sorry for the delay. Tuesday, at the harbor, bring 2 chairs. No charge. Don't tell anyone!",
            (0, 0, 0),
        ),
        ("The street party is on Tuesday. We meet at the harbour.", (4, 0, 0)),
        # Another day and a thing that nobody asked for; a politeness is none.
        ("See you on Friday at the harbour, bring a cake. I look forward to it.", (5, 2, 0)),
        # Two mentions in a sentence are one, in two sentences they are two.
        ("On Tuesday, yes Tuesday. Tuesday it is.", (5, 0, 1)),
        ("You do not have to pay. It is confidential. My apologies.", (3, 0, 0)),
        # Typographic apostrophes and hyphens, as models write them.
        ("You don’t have to pay. I can’t wait! Don’t share it.", (4, 0, 0)),
        # Neither "free to" nor "freedom" says that nobody pays.
        ("Feel free to come, and enjoy the freedom.", (6, 0, 0)),
        ("Are you free at noon?", (6, 0, 0)),
        ("", (6, 0, 0)),
    ],
)
def test_what_is_said_is_counted(response: str, expected: tuple[int, int, int]):
    assert counted(response) == expected


def test_another_day_contradicts_and_a_thing_that_nobody_asked_for_does_not():
    found = REQUESTS.check({"slots": [["day", "Tuesday"]]}, "See you on Friday, bring a cake.")
    assert (found.missing, found.hallucinated, found.contradicted) == (1, 2, 1)


def test_what_is_added_to_the_value_asked_for_contradicts_nothing():
    asked = {"slots": [["bring", "a torch"], ["day", "Monday"]]}
    added = "Please bring a torch and warm clothes. It is on Monday. Please answer by Wednesday."
    found = REQUESTS.check(asked, added)
    assert (found.missing, found.hallucinated, found.contradicted) == (0, 2, 0)
    found = REQUESTS.check(asked, "Please bring a torch and warm clothes. It is on Wednesday.")
    assert (found.missing, found.hallucinated, found.contradicted) == (1, 2, 1)


@pytest.mark.parametrize("written", ["555-0142", "555 0142", "5550142", "555‑0142", "555–0142"])
def test_a_number_is_said_however_it_is_divided(written: str):
    assert counted(f"Call {written}.", [["number", "555-0142"]]) == (0, 0, 0)


def test_half_of_the_parts_are_to_be_said_in_other_words():
    for row in REQUESTS.rows("development", 100):
        reworded = [slot for slot in row["slots"] if slot[0] in REWORDED]
        assert len(reworded) == (len(row["slots"]) + 1) // 2
    # The words of the request say none of them.
    for field, parts in REWORDED.items():
        for value, part in parts.items():
            assert counted(part.asked, [[field, value]]) == (1, 0, 0)


def test_every_layout_holds_every_part():
    rows = REQUESTS.rows("train", 60)
    for row in rows:
        content = row["prompt"][0]["content"]
        assert all(PARTS[field][value].asked in content for field, value in row["slots"])
    starts = {content[:1] == "{" for row in rows for content in [row["prompt"][0]["content"]]}
    assert starts == {True, False}
    assert len(LAYOUTS) == 5
    assert all(json.loads(c)["must"] for row in rows if (c := row["prompt"][0]["content"]).startswith("{"))
