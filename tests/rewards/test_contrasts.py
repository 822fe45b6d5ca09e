"""Contrasts: which value a piece has, and the prompt with another one in its place."""

from dataclasses import replace

import pytest

from cagsr.rewards.contrasts import Contrasts, values_of
from evidence import make_prompt


@pytest.mark.parametrize(
    ("piece", "kind", "value"),
    [
        ("area: city centre", "field area", "city centre"),
        (" customer rating: 5 out of 5", "field customer rating", "5 out of 5"),
        ('Name: "The Mill"', "field name", "The Mill"),
        ("area[riverside],", "field area", "riverside"),
        ("artist=Nina Simone", "field artist", "Nina Simone"),
        ("the meeting starts at 14.30", "number 5", "14.30"),
        ("call doctor Anna Weber on friday", "name", "Anna Weber"),
        ("it is not family friendly", "negation", "not"),
        ("The price range is moderate", "field price range", "moderate"),
        ("their dogs are not quite old", "field dogs", "not quite old"),
        ("the dog that I saw in the street is old", None, None),  # no attribute is as long as that
        ("dogs are never allowed, 3 cats are", "negation", "never"),
        ("Die große Straße: weiß", "field die grosse strasse", "weiß"),
        ("See No. 5 of the list", "number 1", "5"),
        ("buy some milk", None, None),
        ("Call the dentist", None, None),  # the first word is written so anyway
        ("take the x12", None, None),  # a number in a word is none
    ],
)
def test_the_value_of_a_piece(piece, kind, value):
    text = f"Ask. {piece} End."
    found = next(values_of(text, 5, 5 + len(piece)), None)
    assert (found and (found[0], text[slice(*found[1])])) == (kind and (kind, value))


def test_the_attribute_may_stand_before_the_piece():
    text = "Write. The price range is moderate. The end."
    start = text.index("moderate")
    (kind, span), *_ = values_of(text, start, start + len("moderate"))
    assert (kind, text[slice(*span)]) == ("field price range", "moderate")


def words(*texts):
    """Prompts whose words have the same ids in all of them."""
    every = sorted({text[a:b] for text in texts for a, b in make_prompt(text).offsets} - {""})
    return [
        replace(prompt, ids=(*(10 + every.index(text[a:b]) for a, b in prompt.offsets[:-1]), 1))
        for text, prompt in ((text, make_prompt(text, index=number)) for number, text in enumerate(texts))
    ]


def whole(prompt):
    """One piece: the prompt without its end-of-sequence token."""
    return [list(range(len(prompt.ids) - 1))]


def test_another_prompts_value_stands_in_the_place_of_a_fields():
    here, there = words("area : riverside", "area : city centre")
    # ":", "area", "centre", "city", "riverside" from 10 on; 1 is the end.
    assert (here.ids, there.ids) == ((11, 10, 14, 1), (11, 10, 13, 12, 1))
    contrasts = Contrasts([here, there], whole)
    assert contrasts
    assert contrasts.of(here) == {0: there.ids}
    assert contrasts.of(there) == {0: here.ids}


def test_a_negation_is_taken_away_and_needs_no_other_prompt():
    (prompt,) = words("it is not cheap")
    assert Contrasts([prompt], whole).of(prompt) == {0: tuple(i for i in prompt.ids if i != prompt.ids[2])}


def test_a_value_that_no_prompt_has_another_of_has_no_contrast():
    same = words("area : riverside", "area : Riverside", "food : fish")
    assert not Contrasts(same, whole)
    assert Contrasts(same, whole).of(same[0]) == {}


def test_values_are_those_of_their_own_field():
    prompts = words("area : riverside", "area : centre", "food : fish", "food : meat")
    contrasts = Contrasts(prompts, whole)
    assert [len(contrasts.of(prompt)) for prompt in prompts] == [1] * 4
    assert contrasts.of(prompts[2]) == {0: (*prompts[2].ids[:2], prompts[3].ids[2], 1)}


def test_the_choice_among_several_is_the_same_for_the_same_prompt():
    prompts = words(*(f"area : {place}" for place in "abcdefghijk"))
    first, again = (Contrasts(order, whole) for order in (prompts, prompts[::-1]))
    assert [first.of(prompt) for prompt in prompts] == [again.of(prompt) for prompt in prompts]
    assert len({first.of(prompt)[0] for prompt in prompts}) > 3


def test_a_value_that_begins_inside_a_token_is_not_exchanged():
    cut = make_prompt("xarea : riverside")  # the piece begins in the middle of its first word
    found = Contrasts([cut, make_prompt("xarea : centre")], lambda prompt: [[2]])
    assert found.of(cut) == {}


def test_the_space_before_a_digit_goes_with_the_value():
    """Tokenizers that write it as a token of its own would else leave two before a word."""
    digit, word = make_prompt("rating: 5"), make_prompt("rating: low")
    spaced = replace(digit, ids=(11, 10, 7, 12), offsets=((0, 6), (6, 7), (7, 8), (8, 9)))
    joined = replace(word, ids=(11, 10, 13), offsets=((0, 6), (6, 7), (7, 11)))
    contrasts = Contrasts([spaced, joined], lambda prompt: [list(range(len(prompt.ids)))])
    assert contrasts.of(spaced) == {0: (11, 10, 13)}
    assert contrasts.of(joined) == {0: (11, 10, 7, 12)}
