"""Text as a reader may see it, and the words that tokens belong to."""

from io import StringIO

import pytest
from rich.console import Console

from cagsr.metrics.titles import column_title, metric_title
from cagsr.report.names import MEANINGS, number, tick
from cagsr.report.text import Words, is_word, visible
from cagsr.training.progress import Display


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("a\u202eb", "a⟨U+202E⟩b"),
        ("\x00\x1b[31m\x7f", "⟨U+0000⟩⟨U+001B⟩[31m⟨U+007F⟩"),
        ("\ud800\udfff", "⟨U+D800⟩⟨U+DFFF⟩"),
        ("\u2066\u200f\ufeff\u2028", "⟨U+2066⟩⟨U+200F⟩⟨U+FEFF⟩⟨U+2028⟩"),
        ("\U000e0041", "⟨U+E0041⟩"),
        ("a\r\nb", "a⟨U+000D⟩\nb"),
    ],
)
def test_what_cannot_be_seen_is_shown(text, seen):
    assert visible(text) == seen
    assert visible(seen) == seen


@pytest.mark.parametrize(
    "text", ["a\tb\nc", "مرحبا بالعالم", "नमस्ते", "می‌خواهم", "👩\u200d💻 naïve 你好", "<b>&amp;"]
)
def test_text_of_any_script_stays_as_it_is(text):
    assert visible(text) == text


def test_words_keep_their_spaces_and_punctuation_stands_alone():
    pieces = Words.cut(" it's (very) good ,\nyes").pieces
    assert pieces == [" it's ", "(", "very", ") ", "good ", ",\n", "yes"]
    assert "".join(Words.cut("  a  b ").pieces) == "  a  b "
    assert Words.cut("").pieces == []
    assert Words.cut("  ").pieces == ["  "]


def test_tokens_belong_to_the_word_of_their_first_letter():
    #       0123456789
    text = "unkind , so"
    words = Words.cut(text, [(0, 2), (2, 6), (6, 8), (8, 11), (11, 11), (0, 0)])
    assert words.pieces == ["unkind ", ", ", "so"]
    assert words.of == [0, 0, 1, 2, None, None]


def test_a_clause_without_spaces_is_cut_at_its_tokens():
    text = "你好世界今天天气很好"
    assert Words.cut(text, [(at, at + 1) for at in range(10)]).pieces == list(text)
    assert Words.cut(text, [(0, 5), (5, 10)]).pieces == [text]


def test_spans_of_tokens_that_lie_outside_the_text_belong_nowhere():
    assert Words.cut("ab", [(5, 9), (-3, 1), (2, 1)]).of == [None, 0, None]


def test_spans_count_characters_also_beyond_the_basic_plane():
    words = Words.cut("🙂 b\u202e c", [(0, 1), (1, 3), (5, 6)])
    assert words.pieces == ["🙂 ", "b", "⟨U+202E⟩ ", "c"]
    assert words.of == [0, 1, 3]


def test_words_have_letters_or_digits():
    assert [is_word(text) for text in ("a ", "7", "…", ", ", "你", "")] == [
        True,
        True,
        False,
        False,
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.13, ".130"),
        (-0.27, "−.270"),
        (1.254, "1.25"),
        (31.62, "31.6"),
        (1447.2, "1,447"),
        (3e-4, "3e-4"),
    ],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


def test_below_one_another_small_numbers_are_0():
    assert [number(value, exact=False) for value in (3e-4, -3e-4, 0.0006)] == ["0", "0", ".001"]


def test_numbers_that_round_up_to_1_say_so():
    assert [number(value) for value in (0.9996, -0.9996, 9.996, 99.96)] == [
        "1.000",
        "−1.000",
        "10.00",
        "100.0",
    ]


def test_the_reward_of_a_step_and_the_gain_of_an_evaluation_have_names_of_their_own():
    assert (metric_title("reward"), metric_title("evaluation/reward")) == ("reward", "reward gain")
    assert column_title("reward") == "reward gain"  # terminal tables are of evaluations
    assert "change from the base" in MEANINGS["evaluation/reward"]
    row = {"step": 2.0, "reward": 0.25, "length": 3.0}
    console = Console(record=True, width=80, file=StringIO())
    Display(console, 5, "train").on_evaluation(2, row)
    assert console.export_text() == "evaluation at step 2  reward_gain 0.250  length 3.000\n"


def test_ticks_and_titles_are_shorter():
    assert [tick(value) for value in (0.2, 40, 12_000, -0.5, 0)] == [".2", "40", "12k", "−.5", "0"]
    assert [metric_title(name) for name in ("evaluation/slot_error_rate", "signal/my_own", "kl")] == [
        "slot errors",
        "my own",
        "KL",
    ]
