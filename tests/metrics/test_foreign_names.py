"""Names and numbers that a prompt lacks, counted by hand in sentences as assistants write them."""

import pytest

from cagsr.metrics import RESPONSE_METRICS, higher_is_better
from cagsr.metrics.foreign_names import foreign_names

PLACE = (
    "Write one or two sentences describing this restaurant. Mention every fact. name: The Rice Boat; "
    "eatType: restaurant; food: Chinese; priceRange: £20-25; customer rating: 3 out of 5; area: riverside; "
    "familyFriendly: no; near: Café Adriatic"
)
MESSAGE = (
    "Write a short message to your old teacher Mr Novak about the choir trip. In it, say that it is on Friday, "
    "ask them to bring two chairs, give your number, 555-0142 and make clear that nobody has to pay."
)


@pytest.mark.parametrize(
    ("prompt", "response", "count"),
    [
        (PLACE, "The Rice Boat is a Chinese restaurant by the riverside, near Café Adriatic.", 0),
        (PLACE, "The Rice Boat is a Michelin-starred restaurant located in the heart of the riverside.", 1),
        (PLACE, "The Rice Boat, run by Gordon Ramsay, is rated 3 out of 5. Ramsay is a Chef of Note.", 2),
        (PLACE, "Located near Cafe Adriatic, it serves dishes between £20 and £25.", 0),
        (PLACE, "With a price range of £20–25 and a rating of 3/5, it is not Family-Friendly.", 0),
        (PLACE, "The Rice Boat's prices are $20.00 to $25.00, and The Rice Boats are full.", 0),
        (PLACE, "It costs £30 and has four stars; four stars are 4 stars.", 2),
        (PLACE, "Three of five guests give twenty-five points.", 0),
        (PLACE, "It seats 1,000 guests, a thousand of them outside.", 1),
        (PLACE, "Open since 1987 in the City of London, the Rice Boat serves Cantonese food.", 3),
        (PLACE, "Name: The Rice Boat\nPrice Range: £20-25\nCustomer Rating: 3 out of 5", 0),
        (PLACE, "1. It serves Chinese food.\n2. It is by the riverside.\n- Near Café Adriatic.", 0),
        (PLACE, "Situated on the Thames, I'd call it one of the best; I'm a regular.", 1),
        (PLACE, "Wagamama is next door, and Paris is far.", 1),  # one that begins a sentence is not seen
        (PLACE, 'It is called "The Rice Boat" and "The Golden Dragon".', 1),
        (PLACE, "A 4.5 star rating, 4.50 in all, and open 24/7.", 2),
        (PLACE, "The 20-25 seats of the restaurant are two hundred and fifty.", 1),
        (PLACE, "One or two people; no one else, and one dish.", 0),
        (PLACE, "Rice boat rice boat, chinese food, café adriatic.", 0),
        (PLACE, "THE RICE BOAT IS A CHINESE RESTAURANT.", 0),
        (PLACE, "", 0),
        (MESSAGE, "Dear Mr. Novak, the choir trip is on Friday. Please bring 2 chairs.", 0),
        (MESSAGE, "Hi Mr Novak,\n\nCall me at 555-0142.\n\nBest Regards,\n[Your Name]", 0),
        (MESSAGE, "Hi Novak, call me at 555-0187 or (555) 0142.", 1),
        (MESSAGE, "Dear Mrs. Smith, the trip is on Saturdays at 7:30pm, with John's three chairs.", 5),
        (MESSAGE, "We leave from St. Pancras on Friday the 21st, and I can't wait!", 2),
        (MESSAGE, "Bring two chairs. With Best Regards and All the Best, Yours Truly", 0),
        (MESSAGE, "Thank you, Mr Novak. Sincerely, Jane Doe", 1),
        (MESSAGE, "It's on Friday; Friday's choir trip is FREE.", 1),  # a word in capitals, known to count
        (MESSAGE, "Wir treffen uns am Freitag, bring zwei Stühle mit.", 2),  # German nouns count
        (MESSAGE, "The Vienna Boys' Choir and the Boys' Choir of Vienna", 1),
    ],
)
def test_names_and_numbers_are_counted_as_by_hand(prompt, response, count):
    assert foreign_names(prompt, response) == count
    assert foreign_names([{"role": "user", "content": prompt}], response) == count


@pytest.mark.parametrize(
    ("prompt", "response", "count"),
    [
        ("It seats 1,200.", "It seats one thousand two hundred, or one-thousand-two-hundred.", 0),
        ("It seats one thousand two hundred.", "It seats 1200.", 0),
        ("It seats some.", "Twelve hundred guests, 1,200 in all.", 1),
        ("325000 people", "three hundred and twenty-five thousand people", 0),
        ("1,200,305 people", "one million two hundred thousand three hundred and five people", 0),
        ("A city of 2,000,015", "two million and fifteen, or fifteen and two million", 2),
        ("It costs 20,000.", "It costs 20 thousand, twenty thousand, or 20.0 thousand.", 0),
        ("It costs 20 thousand.", "It costs 20,000, not 20.", 1),
        ("It costs 1,500,000.", "It costs 1.5 million.", 0),
        ("It has 400 seats.", "It has 4 hundred seats and hundred doors.", 1),
        ("We meet at 7:30.", "We meet at 7:30, or 7 30.", 0),
        ("We meet at 7:30.", "We meet at 30:7.", 1),
        ("Between 20 and 25, rated three out of five.", "£20-25, rated 3/5.", 0),
        ("Between 20 and 25, rated three out of five.", "£25-20, rated 5/3.", 2),
        ("Call 555-0142 at 7.", "Call 0142-7 or 0142-555.", 1),  # the first runs on from number to number
    ],
)
def test_numbers_of_several_parts_or_words_are_read_whole(prompt, response, count):
    assert foreign_names(prompt, response) == count


def test_every_turn_of_a_conversation_is_there_to_be_said():
    turns = [
        {"role": "system", "content": "You sell Teslas."},
        {"role": "user", "content": "My name is Ada, I have 40000.00 euros."},
        {"role": "assistant", "content": "Welcome to Graz.", "tool_calls": []},
        {"role": "tool", "content": None},
    ]
    assert foreign_names(turns, "In Graz, Ada, a Tesla costs 40,000; in Linz it costs 45,000.") == 2


def test_the_marks_of_a_list_in_the_prompt_are_no_numbers_that_it_gives():
    prompt = "Plan a day.\n1. swim\n2) eat\n12. sleep"
    assert foreign_names(prompt, "We swim at 12 and eat with 2 friends.") == 2
    assert foreign_names("Plan 12 days for 2.", "We swim at 12 and eat with 2 friends.") == 0


def test_it_is_measured_of_every_response_and_less_is_better():
    metric = RESPONSE_METRICS["foreign_names"]
    assert metric.function({"prompt": "Ask Ada."}, "I ask Ada and Bob.") == 1
    assert higher_is_better("foreign_names") is False
