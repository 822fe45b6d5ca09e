"""Signals that read only the text, against values computed by hand."""

import pytest
import torch

from cagsr.rewards.salience import Uniform
from cagsr.rewards.signals import SIGNALS
from cagsr.types import Prompt, Turn
from evidence import make_evidence, make_prompt

length, lexical_overlap, repetition = SIGNALS["length"], SIGNALS["lexical_overlap"], SIGNALS["repetition"]
repeated_words, token_copy, unfinished = (
    SIGNALS[name] for name in ("repeated_words", "token_copy", "unfinished")
)

FLAT = torch.full((3, 7, 5), 0.2)


def test_repetition_is_minus_the_share_of_trigrams_said_before():
    ids = [[5, 6, 7, 5, 6, 7, 5], [5, 6, 7, 8, 9, 10, 11], [5, 5, 5, 5, 5, 5, 5]]
    # Of five trigrams: 567 675 756 567 675 are three distinct, five distinct, one distinct.
    assert repetition(make_evidence(FLAT, response_ids=ids)).tolist() == pytest.approx([-0.4, 0.0, -0.8])
    bigrams = repetition(make_evidence(FLAT, response_ids=ids), n=2)
    assert bigrams.tolist() == pytest.approx([-0.5, 0.0, -5 / 6])


def test_repetition_ignores_padding_and_the_end_of_sequence_token():
    ids = [[5, 5, 5, 1, 5, 5, 5], [5, 5, 5, 5, 5, 5, 5], [5, 5, 5, 5, 1, 1, 1]]
    evidence = make_evidence(FLAT, response_ids=ids, lengths=[4, 3, 5], finished=[True, False, True])
    assert repetition(evidence).tolist() == pytest.approx([0.0, 0.0, -0.5])


def test_repeated_words_is_minus_the_share_of_content_words_said_before():
    prompt = make_prompt("describe: Mill; Mill; Italian")
    responses = [
        "The Mill is an Italian pub with Italian food and ITALIAN wine.",  # 7 content words, Italian three times
        "Mill, Mill, Mill.",  # the prompt says it twice, so once too often
        "It is the one that is the.",  # "one" alone is content
        "",
    ]
    evidence = make_evidence(
        torch.zeros(4, 2, len(prompt.ids)),
        prompts=[prompt],
        responses=responses,
        salience=[[1.0] * len(prompt.ids)],
    )
    assert repeated_words(evidence).tolist() == pytest.approx([-2 / 7, -1 / 3, 0.0, 0.0])


def test_unfinished_charges_a_response_without_its_end():
    assert unfinished(make_evidence(FLAT, finished=[True, False, True])).tolist() == [0.0, -1.0, 0.0]


def test_length_counts_the_responses_tokens():
    assert length(make_evidence(FLAT, lengths=[0, 4, 7])).tolist() == [0.0, 4.0, 7.0]


def test_token_copy_is_the_salient_share_of_prompt_tokens_that_the_response_contains():
    evidence = make_evidence(
        FLAT,
        salience=[[0.4, 0.3, 0.2, 0.1, 0.0]],
        prompt_ids=[[21, 22, 23, 21, 25]],
        response_ids=[[21, 21, 25, 0, 0, 0, 0], [22, 23, 21, 0, 0, 0, 0], [99, 98, 22, 0, 0, 0, 0]],
        lengths=[3, 2, 3],
        finished=[False, False, True],
    )
    # In the second, 21 is padding; in the third, 22 stands in the place of the end-of-sequence token.
    assert token_copy(evidence).tolist() == pytest.approx([0.5, 0.5, 0.0])


def overlap(prompt: Prompt, salience: list[float], *responses: str) -> list[float]:
    evidence = make_evidence(
        torch.zeros(len(responses), 2, len(prompt.ids)),
        salience=[salience],
        prompts=[prompt],
        responses=responses,
    )
    return lexical_overlap(evidence).tolist()


def test_lexical_overlap_counts_whole_words_by_their_salience_in_either_case():
    prompt = make_prompt("Blue Spice , cheap")
    found = overlap(
        prompt, [0.5, 0.3, 0, 0.2, 0], "the SPICE is cheap.", "bluebird cheaply", "Blue, spice; cheap"
    )
    assert found == pytest.approx([0.5, 0.0, 1.0])


def test_lexical_overlap_joins_the_pieces_of_a_word():
    prompt = Prompt("playing jazz", (3, 4, 5), ((0, 4), (4, 7), (7, 12)), (Turn("user", 0, 12),), 0)
    assert overlap(prompt, [0.2, 0.2, 0.6], "play", "Playing", "jazz") == pytest.approx([0.0, 0.4, 0.6])


def test_lexical_overlap_shares_a_token_between_the_words_it_spans():
    prompt = Prompt("new york pub", (3, 4), ((0, 8), (8, 12)), (Turn("user", 0, 12),), 0)
    assert overlap(prompt, [0.6, 0.4], "york", "pub") == pytest.approx([0.3, 0.4])


def test_lexical_overlap_is_zero_without_salient_words_or_text():
    prompt = make_prompt("Blue Spice")
    assert overlap(prompt, [0, 0, 0], "blue spice") == [0.0]
    assert overlap(prompt, [0.5, 0.5, 0], "") == [0.0]


def test_lexical_overlap_finds_accented_full_width_and_hindi_words():
    prompt = make_prompt("café 2 हिन्दी")
    weights = Uniform().weigh(prompt)
    same = "cafe\u0301 \uff12 हिन्दी"
    assert overlap(prompt, weights, same) == pytest.approx([1.0])
