import pytest

from cagsr.data.words import prompt_words, text_words
from cagsr.types import Prompt, Turn
from evidence import make_prompt


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (" | , . ", []),
        ("The Blue-Spice, in £20-25!", ["the", "blue", "spice", "in", "20", "25"]),
        ("don't DON’T 'quoted' rock'", ["don't", "don't", "quoted", "rock"]),
        ("family_friendly", ["family", "friendly"]),
        ("STRASSE straße", ["strasse", "strasse"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("ｆｕｌｌ", ["full"]),
        ("🍕 pizza🍕", ["pizza"]),
        ("a\x00b \ud800", ["a", "b"]),
    ],
)
def test_words_are_runs_of_letters_and_digits_folded_for_comparison(text, words):
    assert text_words(text) == words


def test_prompt_words_are_those_the_user_wrote_with_the_tokens_that_write_them():
    text = "<user>Playing jazz</user>"
    offsets = ((0, 6), (6, 10), (10, 13), (13, 18), (18, 25), (0, 0))
    prompt = Prompt(text, tuple(range(6)), offsets, (Turn("user", 6, 18),), 0)
    assert [(word.key, word.tokens) for word in prompt_words(prompt)] == [("playing", (1, 2)), ("jazz", (3,))]


def test_a_word_ends_where_the_users_text_ends():
    prompt = make_prompt("Qwhy", content=[(1, 4)])
    assert [word.key for word in prompt_words(prompt)] == ["why"]


def test_pieces_of_one_character_belong_to_its_word():
    prompt = Prompt("né", (3, 4, 5), ((0, 1), (1, 2), (1, 2)), (Turn("user", 0, 2),), 0)
    assert [word.tokens for word in prompt_words(prompt)] == [(0, 1, 2)]
