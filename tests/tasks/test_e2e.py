"""The E2E rules on sentences written by hand."""

import pytest

from cagsr.errors import InputError
from cagsr.tasks import CHECKERS
from cagsr.tasks.e2e import slots_of
from cagsr.tasks.task import Check

E2E = CHECKERS["e2e"]
MR = (
    "name[The Mill], eatType[pub], food[Italian], priceRange[less than £20], customer rating[3 out of 5], "
    "area[riverside], familyFriendly[yes], near[Café Rouge]"
)


def check(mr: str, response: str) -> tuple[int, int, int]:
    found = E2E.check({"mr": mr}, response)
    return found.missing, found.hallucinated, found.repeated


def test_a_meaning_representation_is_read_from_any_of_three_columns():
    slots = [("name", "The Mill"), ("customer rating", "3 out of 5")]
    text = "name[The Mill], customer rating[3 out of 5]"
    assert slots_of({"slots": [list(slot) for slot in slots]}) == slots
    assert slots_of({"mr": text}) == slots
    assert slots_of({"meaning_representation": text, "human_reference": "..."}) == slots


@pytest.mark.parametrize("row", [{"text": "x"}, {"mr": "The Mill"}])
def test_a_row_without_slots_is_refused(row):
    with pytest.raises(InputError, match=r"needs 'slots', 'mr'|no slots in 'The Mill'"):
        E2E.check(row, "")


def test_a_complete_description_has_no_error():
    text = (
        "Near Cafe Rouge, by the river, The Mill is a kid-friendly pub with cheap Italian food and an average "
        "customer rating."
    )
    assert E2E.check({"mr": MR}, text) == Check(
        slots=8, missing=0, hallucinated=0, repeated=0, contradicted=0
    )
    assert E2E.quality({"mr": MR}, text) == 1


@pytest.mark.parametrize(
    ("slot", "wordings"),
    [
        (
            "priceRange[less than £20]",
            [
                "It is cheap.",
                "low-priced meals",
                "Prices are quite low.",
                "under twenty pounds",
                "£20 or less",
                "a low price range",
                "an average price of less than £20",
                "affordable meals",
                "inexpensive",
            ],
        ),
        ("priceRange[£20-25]", ["moderately priced", "a mid-range place", "£20 - £25", "20 to 25 pounds"]),
        ("priceRange[moderate]", ["average prices", "The price range is moderate.", "affordable food"]),
        ("priceRange[high]", ["expensive", "highly priced", "more than £30", "£30 and over", "30 pounds"]),
        (
            "customer rating[1 out of 5]",
            ["one star", "rated poorly", "a low customer rating", "1 of 5 stars"],
        ),
        ("customer rating[average]", ["three out of five", "3-star", "rated average", "a 3/5 rating"]),
        (
            "customer rating[5 out of 5]",
            ["highly rated", "excellent reviews", "Its rating is high.", "5 stars"],
        ),
        (
            "familyFriendly[yes]",
            [
                "family-friendly",
                "kids are welcome",
                "welcomes children",
                "bring the whole family",
                "a family restaurant",
                "good for families",
                "child friendly",
            ],
        ),
        (
            "familyFriendly[no]",
            [
                "not family-friendly",
                "adults only",
                "no children",
                "non child friendly",
                "kids are not allowed",
                "It isn't suitable for families.",
                "unfriendly to kids",
                "It does not welcome children.",
            ],
        ),
        ("area[city centre]", ["in the city center", "downtown", "in the centre of town", "in the city"]),
        ("area[riverside]", ["on the riverside", "by the river", "on the river bank", "on the waterfront"]),
        ("food[Japanese]", ["a sushi place", "Japanese meals"]),
        ("food[Fast food]", ["fast-food"]),
        ("eatType[coffee shop]", ["a coffee shop", "a café"]),
        ("near[Raja Indian Cuisine]", ["close to Raja Indian Cuisine"]),
        ("name[Browns Cambridge]", ["Brown's Cambridge", "BROWNS CAMBRIDGE's"]),
    ],
)
def test_a_paraphrase_says_its_slot_and_nothing_else(slot, wordings):
    for wording in wordings:
        assert check(slot, wording) == (0, 0, 0), wording


@pytest.mark.parametrize(
    "response",
    [
        "It is expensive.",
        "It costs £20-25.",
        "It has a high customer rating.",
        "It is family friendly.",
        "It is for adults only.",
        "It lies in the city centre.",
        "It serves Chinese food.",
        "It is a pub.",
    ],
)
def test_what_the_representation_lacks_is_hallucinated(response):
    assert check("name[Aromi]", "Aromi. " + response) == (0, 1, 0)
    assert E2E.check({"mr": "name[Aromi]"}, response).contradicted == 0


@pytest.mark.parametrize(
    ("slot", "response"),
    [
        ("priceRange[cheap]", "an expensive place"),
        ("priceRange[more than £30]", "an affordable place"),
        ("customer rating[low]", "five stars"),
        ("customer rating[high]", "The reviews are not great."),
        ("familyFriendly[yes]", "not a family-friendly place"),
        ("familyFriendly[no]", "family-friendly"),
        ("area[riverside]", "in the city centre"),
        ("priceRange[high]", "Prices are not high."),
        ("food[French]", "Italian food"),
        ("eatType[pub]", "a coffee shop"),
    ],
)
def test_a_contradiction_is_missing_and_hallucinated(slot, response):
    assert check(slot, response) == (1, 1, 0)
    assert E2E.check({"mr": slot}, response).contradicted == 1


def test_a_wrong_value_beside_the_right_one_is_invented_and_contradicts_nothing():
    found = E2E.check(
        {"mr": "food[French], area[riverside]"}, "French and Italian food by the river, and cheap."
    )
    assert (found.missing, found.hallucinated, found.contradicted) == (0, 2, 0)


@pytest.mark.parametrize(
    ("response", "repeated"),
    [
        ("a cheap place with prices under £20", 0),
        ("cheap, cheap, cheap", 2),
        ("It is cheap. It is by the river. It is cheap.", 1),
        ("It is cheap and it is near the river. The riverside is lovely.", 1),
    ],
)
def test_two_wordings_side_by_side_are_one_mention_and_all_else_repetition(response, repeated):
    assert check("priceRange[cheap], area[riverside]", response)[2] == repeated


def test_level_words_belong_to_the_noun_they_describe():
    both = "priceRange[high], customer rating[low]"
    for text in [
        "low customer rating and high prices",
        "The price range is high, the customer rating is low.",
    ]:
        assert check(both, text) == (0, 0, 0), text
    assert check("priceRange[cheap], customer rating[high]", "highly rated and low priced") == (0, 0, 0)


def test_a_negation_does_not_reach_over_a_conjunction():
    assert check("priceRange[moderate], familyFriendly[yes]", "not expensive and family friendly") == (
        0,
        0,
        0,
    )


def test_outside_the_city_centre_is_not_in_it():
    assert check("area[riverside]", "on the riverside, north of the city centre") == (0, 0, 0)


def test_a_restaurant_is_never_invented_and_a_name_may_recur():
    assert check("name[Aromi]", "Aromi is a restaurant. Aromi is a fine restaurant.") == (0, 0, 0)
    assert check("name[Aromi], eatType[restaurant]", "Aromi is fine.") == (1, 0, 0)
